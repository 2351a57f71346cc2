"""Samples of numbers: float32, normalised as the run says, for all alike or for each channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.assignment import DataSpecification
from heron_common.data.labels import numbers_of
from heron_common.data.rows import RowReader, StringRows
from heron_common.errors import DataError
from heron_common.tensors import Float32Array, Int64Array


class NumberSamples:
    """Reads rows of arrays, or columns of numbers: as many as a sample has elements, in row-major order."""

    def __init__(self, rows: RowReader, specification: DataSpecification, source_name: str) -> None:
        """Check the shape.

        Raises:
            DataError: it is not the run's.

        """
        shape = specification.input_shape
        fits = rows.shape[1:] == (math.prod(shape),) if isinstance(rows, StringRows) else rows.shape[1:] == shape
        if not fits:
            came = f"names {rows.shape[1]} columns" if isinstance(rows, StringRows) else f"has {list(rows.shape[1:])}"
            raise DataError(
                f"the run expects samples of shape {list(shape)} ({specification.name}), "
                f"but {source_name!r} {came}: choose other data or another --data-spec on the server"
            )
        self._rows = rows
        self._shape = shape
        deviations = specification.channel_deviations or (specification.standard_deviation,)
        self._mean = _by_channel(specification.channel_means or (specification.mean,), len(shape))
        self._factor = _by_channel([1.0 / deviation for deviation in deviations], len(shape))

    def read(self, rows: Int64Array) -> tuple[Float32Array, None, Int64Array]:
        """Return x; there are no labels in it and no tokens.

        Raises:
            DataError: a string is no number.

        """
        raw = self._rows.read(rows)
        if isinstance(self._rows, StringRows):
            numbers = [numbers_of(self._rows, fields, int(row)) for fields, row in zip(raw, rows, strict=True)]
            raw = np.array(numbers, np.float32).reshape(len(rows), *self._shape)
        x = (raw.astype(np.float32, copy=False) - self._mean) * self._factor
        return np.ascontiguousarray(x, np.float32), None, np.zeros(len(rows), np.int64)


def _by_channel(values: Sequence[float], rank: int) -> npt.NDArray[Any]:
    """Return the values along a sample's first dimension, or one for all."""
    array = np.array(values, np.float32)
    return array.reshape(-1, *(1,) * (rank - 1)) if len(values) > 1 else array.reshape(())
