"""Shards and sample orders: disjoint, complete, fixed, and different for every client, round and attempt."""

from __future__ import annotations

import numpy as np
import pytest

from heron_common.data.partition import SampleOrder, Shard, parse_shard, permutation, shard_rows
from heron_common.errors import ConfigurationError, DataError
from heron_common.ids import RoundReference
from heron_common.numerics.directions import PerturbationSeed
from tests.common.numerics.philox import stream_word


@pytest.mark.parametrize(("num_examples", "count"), [(1, 1), (10, 1), (10, 3), (10, 10), (1437, 4)])
def test_shards_are_disjoint_cover_everything_and_differ_by_one_sample_at_most(num_examples: int, count: int) -> None:
    shards = [shard_rows(num_examples, Shard(index, count)) for index in range(count)]
    assert sorted(np.concatenate(shards).tolist()) == list(range(num_examples))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_is_the_same_every_time() -> None:
    assert np.array_equal(shard_rows(500, Shard(1, 3)), shard_rows(500, Shard(1, 3)))


def test_shards_of_sorted_data_are_alike() -> None:
    # 2000 samples sorted by ten labels; a label's share of a shard of 500 is hypergeometric, standard deviation below sqrt(500 * 0.09).
    labels = np.arange(2000) // 200
    for index in range(4):
        counts = np.bincount(labels[shard_rows(2000, Shard(index, 4))], minlength=10)
        assert np.abs(counts - 50).max() < 5 * np.sqrt(500 * 0.09)


def test_more_shards_than_samples_are_refused_with_the_most_that_would_do() -> None:
    with pytest.raises(DataError, match="shard 0/6 of 5 samples would be empty: use at most 5 shards"):
        shard_rows(5, Shard(0, 6))
    assert len(shard_rows(5, Shard(4, 5))) == 1


@pytest.mark.parametrize(("text", "shard"), [("0/1", Shard(0, 1)), ("0/4", Shard(0, 4)), ("63/64", Shard(63, 64))])
def test_a_shard_reads_and_prints_alike(text: str, shard: Shard) -> None:
    assert parse_shard(text) == shard
    assert str(shard) == text


@pytest.mark.parametrize("text", ["", "1", "4/4", "5/4", "0/0", "-1/4", "0/-4", "a/b", "1.0/4", " 0/4", "0/4\n", "0/4/5", "0:4", "/"])
def test_a_text_that_is_no_shard_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="like 0/4") as refusal:
        parse_shard(text)
    assert repr(text) in str(refusal.value)


def test_a_permutation_orders_the_words_of_the_naive_philox() -> None:
    seed = PerturbationSeed(3, 4)
    words = [stream_word(seed, 0, i) for i in range(50)]
    assert permutation(seed, 50).tolist() == sorted(range(50), key=words.__getitem__)


def test_permutations_are_uniform_in_their_first_element() -> None:
    count, trials = 6, 3000
    firsts = np.bincount([permutation(PerturbationSeed(key, 0), count)[0] for key in range(trials)], minlength=count)
    # Binomial with p = 1/6; five standard deviations.
    assert np.abs(firsts - trials / count).max() < 5 * np.sqrt(trials * (1 / 6) * (5 / 6))


def order(
    num_examples: int = 10, batch_size: int = 4, run_seed: int = 1, client: str = "ann", where: tuple[int, int] = (0, 0)
) -> SampleOrder:
    return SampleOrder(run_seed, client, round_reference=RoundReference(*where), num_examples=num_examples, batch_size=batch_size)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (10, 10), (10, 3), (3, 7), (1, 5), (7, 1)])
def test_every_batch_is_full_and_each_sample_comes_once_before_any_comes_twice(num_examples: int, batch_size: int) -> None:
    some = order(num_examples, batch_size)
    batches = [some.indices(step) for step in range(3 * num_examples)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    stream = np.concatenate(batches)
    for epoch in stream[: len(stream) // num_examples * num_examples].reshape(-1, num_examples):
        assert sorted(epoch.tolist()) == list(range(num_examples))


def test_epochs_have_different_orders() -> None:
    some = order(50, 50)
    assert not np.array_equal(some.indices(0), some.indices(1))


def test_the_same_arguments_give_the_same_order() -> None:
    assert all(np.array_equal(order().indices(step), order().indices(step)) for step in range(9))


def test_steps_may_be_asked_for_again_and_in_any_order() -> None:
    forwards, jumping = order(), order()
    expected = [forwards.indices(step).tolist() for step in range(12)]
    for step in (11, 0, 5, 5, 2, 11):
        assert jumping.indices(step).tolist() == expected[step]


@pytest.mark.parametrize(
    "changes", [{"run_seed": 2}, {"client": "bob"}, {"where": (1, 0)}, {"where": (0, 1)}], ids=["run", "client", "round", "attempt"]
)
def test_another_run_client_round_or_attempt_has_another_order(changes: dict[str, object]) -> None:
    assert not np.array_equal(order(100, 100).indices(0), order(100, 100, **changes).indices(0))  # type: ignore[arg-type]
