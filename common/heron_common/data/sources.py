"""Data sources by name, like `digits:train` or `npz:PATH`. Raw values; a run's data specification says how to normalise them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from heron_common.assignment import DataSpecification
from heron_common.data.cifar import CIFAR_10_SPECIFICATION, open_cifar_10
from heron_common.data.digits import DIGITS_SPECIFICATION, open_digits
from heron_common.data.fashion_mnist import FASHION_MNIST_SPECIFICATION, open_fashion_mnist
from heron_common.data.idx import open_idx
from heron_common.data.npz import open_npz
from heron_common.data.partition import Partition, Shard, partition_rows
from heron_common.errors import ConfigurationError, DataError
from heron_common.tensors import Float32Array, Int64Array

_LABELS_AT_ONCE = 4096


class RowReader(Protocol):
    """Random access to the rows of one array; what it reads it does not keep."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of a row."""
        ...

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return the given rows as a new array."""
        ...


@dataclass(frozen=True)
class DataSource:
    """Samples and labels behind row readers, restricted to `rows`."""

    name: str
    inputs: RowReader
    labels: RowReader
    rows: Int64Array

    @property
    def num_examples(self) -> int:
        """How many samples this source (or shard of it) has."""
        return len(self.rows)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.inputs.shape[1:]

    def batch(self, indices: Int64Array, specification: DataSpecification) -> tuple[Float32Array, Int64Array]:
        """Read and normalise samples: x [n, *input_shape] float32, y [n] int64."""
        rows = self.rows[indices]
        raw = self.inputs.read(rows).astype(np.float32, copy=False)
        x = (raw - np.float32(specification.mean)) * np.float32(1.0 / specification.standard_deviation)
        return np.ascontiguousarray(x, np.float32), self.labels.read(rows).astype(np.int64, copy=False).reshape(-1)

    def restricted(self, rows: Int64Array) -> DataSource:
        """Return the same source with only some of its rows."""
        return DataSource(self.name, self.inputs, self.labels, self.rows[rows])

    def read_labels(self) -> Int64Array:
        """Return every label; a few are read at a time."""
        result = np.empty(self.num_examples, np.int64)
        for start in range(0, self.num_examples, _LABELS_AT_ONCE):
            rows = self.rows[start : start + _LABELS_AT_ONCE]
            result[start : start + len(rows)] = self.labels.read(rows).reshape(-1)
        return result

    def shard(self, partition: Partition, shard: Shard) -> DataSource:
        """Return one client's part; labels are read only if the partition depends on them.

        Raises:
            DataError: there are too few samples for so many clients.

        """
        labels = self.read_labels() if partition.uses_labels else np.zeros(self.num_examples, np.int64)
        return self.restricted(partition_rows(labels, partition, shard))


_OPENERS: dict[str, tuple[str, Callable[[str], tuple[RowReader, RowReader]]]] = {
    "digits": ("digits:train or digits:test", open_digits),
    "npz": ("npz:PATH (an uncompressed .npz with arrays 'x' and 'y')", open_npz),
    "fashion-mnist": (
        "fashion-mnist:train or fashion-mnist:test (Debian's dataset-fashion-mnist, or :FOLDER behind it)",
        open_fashion_mnist,
    ),
    "cifar-10": ("cifar-10:train:FOLDER or cifar-10:test:FOLDER (as published, binary or python)", open_cifar_10),
    "idx": ("idx:FOLDER:train or idx:FOLDER:test (MNIST's file format, plain or .gz)", open_idx),
}

SPECIFICATIONS: dict[str, DataSpecification] = {
    specification.name: specification for specification in (DIGITS_SPECIFICATION, FASHION_MNIST_SPECIFICATION, CIFAR_10_SPECIFICATION)
}
"""Specifications that have a name of their own."""


def source_names() -> list[str]:
    """Return how each kind of source is written."""
    return [usage for usage, _ in _OPENERS.values()]


def open_source(name: str) -> DataSource:
    """Open a source by name, `kind:argument`.

    Raises:
        ConfigurationError: there is no such kind; the message lists those that exist.
        DataError: the source is not there or not in the expected form.

    """
    kind, _, argument = name.partition(":")
    if kind not in _OPENERS:
        raise ConfigurationError(f"unknown data source {name!r}: write one of {'; '.join(source_names())}")
    inputs, labels = _OPENERS[kind][1](argument)
    if inputs.shape[0] != labels.shape[0]:
        raise DataError(f"data source {name!r} has {inputs.shape[0]} samples but {labels.shape[0]} labels: they must match")
    if inputs.shape[0] == 0:
        raise DataError(f"data source {name!r} is empty: at least one sample is needed")
    return DataSource(name, inputs, labels, np.arange(inputs.shape[0], dtype=np.int64))


def parse_specification(text: str) -> DataSpecification:
    """Read a name like `digits`, or `1x28x28:10` or `1x28x28:10:MEAN:STANDARD_DEVIATION`.

    Raises:
        ConfigurationError: it is neither; the message shows both forms.

    """
    if text in SPECIFICATIONS:
        return SPECIFICATIONS[text]
    parts = text.split(":")
    try:
        shape = tuple(int(part) for part in parts[0].split("x"))
        mean = float(parts[2]) if len(parts) > 2 else 0.0
        deviation = float(parts[3]) if len(parts) > 3 else 1.0
        specification = DataSpecification(text, shape, int(parts[1]), mean, deviation)
        if (
            len(parts) > 4
            or min(shape) < 1
            or specification.num_classes < 2
            or not 0 < specification.standard_deviation < math.inf
            or not math.isfinite(specification.mean)
        ):
            raise ValueError
    except (ValueError, IndexError):
        raise ConfigurationError(
            f"unknown data specification {text!r}: write one of {', '.join(SPECIFICATIONS)}, or SHAPE:CLASSES[:MEAN:STANDARD_DEVIATION] like 1x28x28:10:0.28:0.35"
        ) from None
    return specification
