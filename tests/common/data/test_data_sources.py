"""Sources by name, their batches, and the comparison with what a run expects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heron_common.data import open_source, source_names
from heron_common.data.check import check_samples, check_source
from heron_common.data.digits import DIGITS_SPECIFICATION, MemoryRows
from heron_common.data.partition import Shard, parse_partition, partition_rows
from heron_common.data.reading import SampleReader
from heron_common.data.sources import DataSource, parse_specification
from heron_common.errors import ConfigurationError, DataError
from heron_common.specification.data_specification import DataSpecification


def source_of(labels: np.ndarray, shape: tuple[int, ...] = (1, 2)) -> DataSource:
    inputs = np.arange(len(labels) * int(np.prod(shape)), dtype=np.float32).reshape(len(labels), *shape)
    return DataSource("memory", inputs=MemoryRows(inputs), labels=MemoryRows(labels), rows=np.arange(len(labels)))


SPECIFICATION = DataSpecification("small", (1, 2), num_classes=3, mean=2.0, standard_deviation=4.0)


@pytest.mark.parametrize("name", ["", "mnist", "mnist:train", "Digits:train", ":train", "digits.train"])
def test_an_unknown_source_is_refused_with_every_kind_that_exists(name: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        open_source(name)
    assert repr(name) in str(refusal.value)
    assert all(usage in str(refusal.value) for usage in source_names())


def test_source_names_show_how_each_kind_is_written() -> None:
    kinds = ["digits", "npz", "fashion-mnist", "cifar-10", "idx", "csv", "jsonl", "text", "image-folder", "python"]
    assert [usage.split(":")[0] for usage in source_names()] == kinds


def test_a_path_may_hold_colons(tmp_path: Path) -> None:
    path = tmp_path / "a:b.npz"
    np.savez(path, x=np.ones((2, 3)), y=np.array([0, 1]))
    assert open_source(f"npz:{path}").input_shape == (3,)


@pytest.mark.parametrize(("samples", "labels"), [(3, 2), (2, 3), (0, 1)])
def test_samples_without_labels_are_refused_with_both_counts(tmp_path: Path, samples: int, labels: int) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((samples, 3)), y=np.zeros(labels, np.int64))
    with pytest.raises(DataError, match=f"has {samples} samples but {labels} labels"):
        open_source(f"npz:{tmp_path / 'd.npz'}")


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((0, 3)), y=np.zeros(0, np.int64))
    with pytest.raises(DataError, match="is empty"):
        open_source(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize("kind", ["u1", "f4", "f8", ">i2"])
def test_a_batch_is_normalised_float32_with_int64_labels(tmp_path: Path, kind: str) -> None:
    raw, labels = np.arange(12).reshape(6, 1, 2).astype(kind), np.array([0, 1, 2, 0, 1, 2], "u1")
    np.savez(tmp_path / "d.npz", x=raw, y=labels)
    x, y = SampleReader(open_source(f"npz:{tmp_path / 'd.npz'}"), SPECIFICATION).batch(np.array([5, 0, 5]))
    assert (x.dtype, y.dtype, x.flags.c_contiguous) == (np.float32, np.int64, True)
    np.testing.assert_allclose(x, (raw[[5, 0, 5]].astype(np.float64) - 2.0) / 4.0, rtol=1e-6)
    assert y.tolist() == [2, 0, 2]


@pytest.mark.parametrize("classes", ["1,2,3", "3,1,2"])
def test_whole_numbers_are_names_where_names_of_classes_are_numbers(classes: str) -> None:
    names = [int(name) for name in classes.split(",")]
    reader = check_source(source_of(np.array([3, 1, 2, 3], np.uint8), (1,)), parse_specification(f"1:{classes}"))
    assert reader.labels(np.arange(4)).tolist() == [names.index(label) for label in (3, 1, 2, 3)]
    with pytest.raises(DataError, match=f"sample 1 of 'memory' has label '0', but the run's classes are {', '.join(map(str, names))}"):
        check_source(source_of(np.array([1, 0])), parse_specification(f"1x2:{classes}"))


TIMES = [1700000001, 1700000003, 1699999999]


@pytest.mark.parametrize("kind", ["i8", "u8", "f8", "i4", "u4", ">i8", "csv", "jsonl", "python"])
def test_a_mean_is_subtracted_before_anything_is_rounded(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "csv":
        (tmp_path / "d.csv").write_text("t,y\n" + "".join(f"{time},0\n" for time in TIMES))
        name = f"csv:{tmp_path / 'd.csv'}:t:y"
    elif kind == "jsonl":
        (tmp_path / "d.jsonl").write_text("".join(f'{{"t": {time}, "y": 0}}\n' for time in TIMES))
        name = f"jsonl:{tmp_path / 'd.jsonl'}:t:y"
    elif kind == "python":
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "source_of_times.py").write_text(f"def load():\n    return [[time] for time in {TIMES}], [0, 0, 0]\n")
        name = "python:source_of_times:load"
    else:
        np.savez(tmp_path / "d.npz", x=np.array(TIMES).astype(kind)[:, None], y=np.zeros(3, np.int64))
        name = f"npz:{tmp_path / 'd.npz'}"
    x, _ = SampleReader(open_source(name), parse_specification("1:2:1700000000:2")).batch(np.arange(3))
    assert (x.dtype, x.tolist()) == (np.float32, [[0.5], [1.5], [-0.5]])


def test_each_channel_is_normalised_in_float64_too() -> None:
    raw = np.array([[[2**40 + 1.0], [0.1]]])
    source = DataSource("memory", inputs=MemoryRows(raw), labels=MemoryRows(np.array([0])), rows=np.arange(1))
    x, _ = SampleReader(source, parse_specification(f"2x1:2:{2**40},0.1:1,3")).batch(np.array([0]))
    assert x.tolist() == [[[1.0], [0.0]]]


def test_a_batch_of_any_size_is_normalised_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    source = DataSource(
        "memory", inputs=MemoryRows(np.random.default_rng(0).normal(size=(9, 1, 2))), labels=MemoryRows(np.zeros(9, int)), rows=np.arange(9)
    )
    whole, _ = SampleReader(source, SPECIFICATION).batch(np.arange(9))
    monkeypatch.setattr("heron_common.data.number_samples._ELEMENTS_AT_ONCE", 4)
    assert np.array_equal(SampleReader(source, SPECIFICATION).batch(np.arange(9))[0], whole)


@pytest.mark.parametrize(
    ("bad", "sentence"), [(np.nan, "NaN or infinity"), (-np.inf, "NaN or infinity"), (1e39, "1e\\+39, which is beyond float32")]
)
def test_a_number_that_is_not_finite_is_refused_with_its_sample(bad: float, sentence: str) -> None:
    raw = np.zeros((4, 1, 2))
    raw[2, 0, 1] = bad
    source = DataSource("memory", inputs=MemoryRows(raw), labels=MemoryRows(np.zeros(4, int)), rows=np.array([3, 2, 1]))
    with pytest.raises(DataError, match=f"samples must be finite, but sample 2 of 'memory' holds {sentence}"):
        check_samples(source, DataSpecification("small", (1, 2), num_classes=3))
    check_source(source, DataSpecification("small", (1, 2), num_classes=3)).batch(np.array([0]))


def test_normalising_a_batch_does_not_change_the_source() -> None:
    source = source_of(np.array([0, 1, 2]))
    first, _ = SampleReader(source, SPECIFICATION).batch(np.array([1]))
    second, _ = SampleReader(source, SPECIFICATION).batch(np.array([1]))
    assert np.array_equal(first, second)


def test_restricting_twice_composes_and_indices_count_within_the_restriction() -> None:
    source = source_of(np.arange(10))
    shard = source.restricted(np.array([8, 6, 4, 2])).restricted(np.array([3, 0]))
    assert (shard.num_examples, source.num_examples) == (2, 10)
    specification = DataSpecification("ten", (1, 2), num_classes=10)
    assert SampleReader(shard, specification).batch(np.array([0, 1]))[1].tolist() == [2, 8]
    assert shard.input_shape == source.input_shape


def test_data_that_fits_the_specification_passes() -> None:
    check_source(source_of(np.array([0, 1, 2, 2])), SPECIFICATION)
    check_source(open_source("digits:train"), DIGITS_SPECIFICATION)
    check_source(open_source("digits:test"), DIGITS_SPECIFICATION)


@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 1, 2), (2, 1)])
def test_another_shape_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as refusal:
        check_source(source_of(np.array([0]), shape), SPECIFICATION)
    assert all(text in str(refusal.value) for text in ("[1, 2]", str(list(shape)), "small", "'memory'"))


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
@pytest.mark.parametrize("place", [0, 1023, 1024, 2499])
def test_a_label_outside_the_classes_is_found_anywhere_and_named(bad: int, place: int) -> None:
    labels = np.zeros(2500, np.int64)
    labels[place] = bad
    with pytest.raises(DataError, match=f"expects labels from 0 to 2, but 'memory' has {bad}:"):
        check_source(source_of(labels), SPECIFICATION)


def test_a_large_unsigned_label_is_not_mistaken_for_a_negative_one() -> None:
    with pytest.raises(DataError, match=f"has {2**64 - 1}:"):
        check_source(source_of(np.array([0, 2**64 - 1], np.uint64)), SPECIFICATION)


def test_only_the_shards_own_labels_are_checked() -> None:
    source = source_of(np.array([0, 99, 1]))
    check_source(source.restricted(np.array([0, 2])), SPECIFICATION)
    with pytest.raises(DataError, match="has 99:"):
        check_source(source.restricted(np.array([1])), SPECIFICATION)


@pytest.mark.parametrize(
    ("text", "shape", "classes", "mean", "deviation"),
    [
        ("1x28x28:10", (1, 28, 28), 10, 0.0, 1.0),
        ("5:2", (5,), 2, 0.0, 1.0),
        ("3x2:4:0.28:0.35", (3, 2), 4, 0.28, 0.35),
        ("3:4:-1", (3,), 4, -1.0, 1.0),
    ],
)
def test_a_specification_reads_shape_classes_mean_and_deviation(
    text: str, shape: tuple[int, ...], classes: int, mean: float, deviation: float
) -> None:
    assert parse_specification(text) == DataSpecification(text, shape, num_classes=classes, mean=mean, standard_deviation=deviation)


def test_a_named_specification_is_found_by_its_name() -> None:
    assert parse_specification("digits") is DIGITS_SPECIFICATION
    assert parse_specification("fashion-mnist") == DataSpecification(
        "fashion-mnist", (1, 28, 28), num_classes=10, mean=72.94, standard_deviation=90.02
    )
    assert parse_specification("cifar-10") == DataSpecification(
        "cifar-10", (3, 32, 32), num_classes=10, mean=120.7, standard_deviation=64.2
    )


@pytest.mark.parametrize("kind", ["u1", ">i4", "i8"])
def test_labels_are_read_in_the_order_of_the_rows(tmp_path: Path, kind: str) -> None:
    labels = (np.arange(10_000) % 251).astype(kind)
    np.savez(tmp_path / "d.npz", x=np.ones((10_000, 1)), y=labels)
    source = open_source(f"npz:{tmp_path / 'd.npz'}")
    assert source.read_labels().dtype == np.int64
    assert np.array_equal(source.read_labels(), labels)
    assert source.restricted(np.array([9_999, 3, 3])).read_labels().tolist() == [labels[9_999], 3, 3]


@pytest.mark.parametrize("text", ["iid", "dirichlet:0.3", "labels:2", "sizes:1"])
def test_a_shard_of_a_source_has_the_rows_of_the_partition(text: str) -> None:
    source, partition = open_source("digits:train"), parse_partition(text)
    labels = source.read_labels()
    for index in range(3):
        expected = partition_rows(labels, partition, Shard(index, 3))
        shard = source.shard(partition, Shard(index, 3))
        assert np.array_equal(shard.rows, expected)
        assert np.array_equal(shard.read_labels(), labels[expected])


def test_a_partition_without_labels_does_not_read_them() -> None:
    class Unreadable(MemoryRows):
        def read(self, rows: np.ndarray) -> np.ndarray:
            raise AssertionError("labels were read")

    inputs = MemoryRows(np.zeros((8, 1)))
    source = DataSource("memory", inputs=inputs, labels=Unreadable(np.zeros(8)), rows=np.arange(8))
    assert source.shard(parse_partition("iid"), Shard(0, 2)).num_examples == 4
    assert source.shard(parse_partition("sizes:1"), Shard(0, 2)).num_examples > 0


WRONG = [
    "",
    "mnist",
    "1x28x28",
    "1x28x28:",
    "1x28x28:1",
    "1x0x28:10",
    "1x-2:10",
    "x:10",
    "1xx2:10",
    "2:ten",
    "2:2.5",
    "2:10:a",
    "2:10:0:0",
    "2:10:0:-1",
]


@pytest.mark.parametrize("text", [*WRONG, "2:10:0:1:5"])
def test_a_text_that_is_no_specification_is_refused_with_both_forms(text: str) -> None:
    with pytest.raises(ConfigurationError, match="digits, fashion-mnist, cifar-10, or SHAPE:CLASSES") as refusal:
        parse_specification(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["2:10:nan:1", "2:10:inf:1", "2:10:0:nan", "2:10:0:inf"])
def test_a_mean_or_deviation_that_is_not_finite_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="SHAPE:CLASSES"):
        parse_specification(text)
