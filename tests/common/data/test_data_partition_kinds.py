"""Partitions of every kind: disjoint, complete, never empty, fixed for ever; and skewed as much as they are asked to be."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heron_common.data.partition import Partition, PartitionKind, Shard, parse_partition, partition_all, partition_rows, shard_rows
from heron_common.errors import ConfigurationError, DataError

TEXTS = ["iid", "dirichlet:0.5", "labels:2", "sizes:1"]


def shards_of(labels: np.ndarray, text: str, count: int) -> list[np.ndarray]:
    return [partition_rows(labels, parse_partition(text), Shard(index, count)) for index in range(count)]


def balanced(num_rows: int, num_classes: int = 10) -> np.ndarray:
    return np.arange(num_rows) % num_classes


@settings(deadline=None, max_examples=150)
@given(
    labels=st.lists(st.integers(-3, 12), min_size=1, max_size=200).map(lambda values: np.array(values, np.int64)),
    kind=st.sampled_from(
        ["dirichlet:0.001", "dirichlet:0.1", "dirichlet:100", "sizes:0.001", "sizes:0.5", "sizes:1000000", "labels:1", "iid"]
    ),
    data=st.data(),
)
def test_shards_are_disjoint_cover_everything_and_none_is_empty(labels: np.ndarray, kind: str, data: st.DataObject) -> None:
    shards = shards_of(labels, kind, data.draw(st.integers(1, len(labels))))
    assert all(len(shard) and shard.dtype == np.int64 for shard in shards)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 5), min_size=12, max_size=200).map(lambda values: np.array(values, np.int64)),
    count=st.integers(1, 4),
    pieces=st.integers(1, 3),
)
def test_label_pieces_cover_everything_and_give_each_client_few_labels(labels: np.ndarray, count: int, pieces: int) -> None:
    shards = shards_of(labels, f"labels:{pieces}", count)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    piece = len(labels) / (count * pieces)
    for shard in shards:
        assert pieces * np.floor(piece) <= len(shard) <= pieces * np.ceil(piece)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_iid_is_what_shards_have_always_been(count: int) -> None:
    for index, shard in enumerate(shards_of(balanced(500), "iid", count)):
        assert np.array_equal(shard, shard_rows(500, Shard(index, count)))


@pytest.mark.parametrize("text", ["iid", "dirichlet:0.1", "labels:2", "sizes:0.5"])
def test_dealing_to_all_clients_at_once_gives_each_the_same_rows(text: str) -> None:
    labels, partition = np.repeat(np.arange(5), 12), parse_partition(text)
    together = partition_all(labels, partition, 17)
    assert len(together) == 17
    for index, rows in enumerate(together):
        assert rows.tolist() == partition_rows(labels, partition, Shard(index, 17)).tolist()
    with pytest.raises(DataError):
        partition_all(labels, partition, 61)


@pytest.mark.parametrize("text", TEXTS)
def test_one_client_alone_has_every_row_in_the_order_of_iid(text: str) -> None:
    assert np.array_equal(shards_of(balanced(100), text, 1)[0], shard_rows(100, Shard(0, 1)))


@pytest.mark.parametrize("text", TEXTS)
def test_rows_of_a_shard_are_shuffled(text: str) -> None:
    # A correlation of n shuffled pairs is about normal with deviation 1 / sqrt(n - 1).
    for shard in shards_of(balanced(4000), text, 4):
        if len(shard) > 100:
            assert abs(np.corrcoef(np.arange(len(shard)), shard)[0, 1]) < 5 / np.sqrt(len(shard) - 1)


GOLDEN = {
    "iid": "ba6016a456c1effb",
    "dirichlet:0.1": "a830fa4d584138e5",
    "dirichlet:5": "dd75247262f614a6",
    "labels:2": "091bafdc4fa2f673",
    "sizes:0.5": "3ffe387f4a2a41b2",
}


@pytest.mark.parametrize("text", GOLDEN)
def test_partitions_never_change(text: str) -> None:
    # Clients of one run may have different versions of numpy and of this package; their shards must stay disjoint.
    shards = shards_of(balanced(1000), text, 7)
    digest = hashlib.sha256(b"|".join(shard.astype("<i8").tobytes() for shard in shards)).hexdigest()
    assert digest[:16] == GOLDEN[text]


def skew(text: str, count: int = 8) -> float:
    """Return the mean distance (total variation) of the clients' label distributions from that of all data."""
    labels = balanced(8000)
    shares = [np.bincount(labels[shard], minlength=10) / len(shard) for shard in shards_of(labels, text, count)]
    return float(np.mean([np.abs(share - 0.1).sum() / 2 for share in shares]))


def test_a_smaller_alpha_skews_labels_more() -> None:
    skews = [skew(f"dirichlet:{alpha}") for alpha in (0.01, 0.1, 1, 10, 1000)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.6
    assert skews[-1] < 0.05


def test_a_large_alpha_and_sizes_alone_leave_labels_alike() -> None:
    # A label's share of m drawn rows deviates by at most sqrt(0.09 / m); here m is 1000, or at least some hundreds.
    assert skew("dirichlet:1000000") < 0.02
    assert skew("sizes:10") < 0.1


def test_a_smaller_alpha_makes_sizes_more_unequal() -> None:
    def spread(alpha: float) -> float:
        return float(np.std([len(shard) for shard in shards_of(balanced(8000), f"sizes:{alpha}", 8)]))

    spreads = [spread(alpha) for alpha in (0.01, 0.5, 10, 1000)]
    assert spreads == sorted(spreads, reverse=True)
    # One client has nearly all: the deviation of (8000, 0, ..., 0) is 1000 * sqrt(7).
    assert spreads[0] > 2000


def test_dirichlet_proportions_have_the_moments_of_the_distribution() -> None:
    # Each label's share of a client is Beta(alpha, (clients - 1) alpha); 300 labels give 300 independent draws of the first client's share.
    alpha, clients, classes, per_class = 0.7, 3, 300, 400
    labels = balanced(classes * per_class, classes)
    shares = (
        np.bincount(labels[partition_rows(labels, parse_partition(f"dirichlet:{alpha}"), Shard(0, clients))], minlength=classes) / per_class
    )
    variance = (1 / 3) * (2 / 3) / (clients * alpha + 1)
    assert abs(shares.mean() - 1 / 3) < 5 * np.sqrt(variance / classes)
    # The fourth moment of a variable in [0, 1] is at most its variance; rounding to rows adds at most 1 / per_class.
    assert abs(shares.var() - variance) < 5 * np.sqrt(variance / classes) * 0.5 + 2 / per_class


def test_label_pieces_give_each_client_as_many_labels_as_pieces() -> None:
    # 20 pieces of 50 rows, two whole pieces per label.
    labels = balanced(1000)
    shards = shards_of(labels, "labels:2", 10)
    assert all(len(shard) == 100 and len(np.unique(labels[shard])) <= 2 for shard in shards)
    # Pieces are dealt at random: not every client got neighbours.
    assert any(np.ptp(np.unique(labels[shard])) > 1 for shard in shards)


@pytest.mark.parametrize("text", TEXTS)
def test_more_clients_than_samples_are_refused_with_the_most_that_would_do(text: str) -> None:
    with pytest.raises(DataError, match="shard 0/6 of 5 samples would be empty: use at most 5 shards"):
        partition_rows(balanced(5), parse_partition(text), Shard(0, 6))


def test_more_pieces_than_samples_are_refused_with_what_would_do() -> None:
    with pytest.raises(DataError, match="labels:4 of 3 clients needs at least 12 samples, but there are 10: use labels:3 or fewer clients"):
        partition_rows(balanced(10), parse_partition("labels:4"), Shard(0, 3))
    assert len(partition_rows(balanced(10), parse_partition("labels:3"), Shard(0, 3)))


@pytest.mark.parametrize(
    ("text", "partition"),
    [
        ("iid", Partition(PartitionKind.IID)),
        ("dirichlet:0.1", Partition(PartitionKind.DIRICHLET, 0.1)),
        ("dirichlet:1", Partition(PartitionKind.DIRICHLET, 1.0)),
        ("dirichlet:1000000", Partition(PartitionKind.DIRICHLET, 1e6)),
        ("sizes:0.001", Partition(PartitionKind.SIZES, 0.001)),
        ("labels:12", Partition(PartitionKind.LABELS, 12)),
    ],
)
def test_a_partition_reads_and_prints_alike(text: str, partition: Partition) -> None:
    assert parse_partition(text) == partition
    assert str(partition) == text


@pytest.mark.parametrize(("text", "alpha"), [("dirichlet:1e-2", 0.01), ("sizes:.5", 0.5), ("sizes:2.", 2.0), ("dirichlet:1e+3", 1000.0)])
def test_alpha_may_be_written_as_any_decimal_number(text: str, alpha: float) -> None:
    assert parse_partition(text).number == alpha


WRONG = [
    "",
    "IID",
    "iid:1",
    "iid ",
    "dirichlet",
    "dirichlet:",
    "dirichlet:0",
    "dirichlet:-1",
    "dirichlet:nan",
    "dirichlet:inf",
    "dirichlet:a",
]
WRONG += ["dirichlet:0.0001", "dirichlet:1e7", "dirichlet: 1", "dirichlet:1\n", "dirichlet:1_0", "dirichlet:0.5:3", "dirichlet:1e999"]
WRONG += [
    "labels",
    "labels:",
    "labels:0",
    "labels:-1",
    "labels:1.5",
    "labels:01",
    "labels:\u0661",
    "sizes",
    "sizes:0",
    "sizes:x",
    "shards:2",
]


@pytest.mark.parametrize("text", WRONG)
def test_a_text_that_is_no_partition_is_refused_with_every_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match="written iid, dirichlet:ALPHA, labels:K or sizes:ALPHA") as refusal:
        parse_partition(text)
    assert repr(text) in str(refusal.value)
