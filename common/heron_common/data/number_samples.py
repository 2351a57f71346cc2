"""Samples of numbers: normalised as the run says, for all alike or for each channel, and then rounded to float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.data.rows import RowReader, StringRows, numbers_of, place_of
from heron_common.errors import DataError
from heron_common.numerics.tensors import Float32Array, Int64Array
from heron_common.specification.data_specification import DataSpecification

_ELEMENTS_AT_ONCE = 1 << 14
"""128 KiB of float64 at a time, whatever a batch has: larger pieces come from the kernel anew every time, five times as slow."""


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
        self._name = source_name
        self._mean = _by_channel(specification.channel_means or (specification.mean,), len(shape))
        self._deviation = _by_channel(specification.channel_deviations or (specification.standard_deviation,), len(shape))

    def read(self, rows: Int64Array) -> tuple[Float32Array, None, Int64Array]:
        """Return x; there are no labels in it and no tokens.

        Raises:
            DataError: a string is no number, or a number is not finite.

        """
        raw = self._rows.read(rows)
        if isinstance(self._rows, StringRows):
            raw = numbers_of(self._rows, raw, rows).reshape(len(rows), *self._shape)
        x = self._normalised(raw)
        finite = np.isfinite(x)
        if not finite.all():
            place = int(np.flatnonzero(~finite.reshape(len(x), -1).all(1))[0])
            raise self._not_finite(raw[place], finite[place], int(rows[place]))
        return x, None, np.zeros(len(rows), np.int64)

    def _normalised(self, raw: npt.NDArray[Any]) -> Float32Array:
        """Subtract and divide in float64 whatever the source holds, and round once: 1700000001 less 1700000000 is 0 in float32."""
        x = np.empty(raw.shape, np.float32)
        step = max(1, _ELEMENTS_AT_ONCE // max(1, math.prod(raw.shape[1:])))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(raw), step):
                part = slice(start, start + step)
                difference = np.subtract(raw[part], self._mean, dtype=np.float64, order="C")
                np.divide(difference, self._deviation, out=x[part], casting="same_kind")
        return x

    def _not_finite(self, raw: npt.NDArray[Any], finite: npt.NDArray[np.bool_], row: int) -> DataError:
        element = int(np.flatnonzero(~finite.reshape(-1))[0])
        value = float(raw.reshape(-1)[element])
        what = f"{value:g}, which is beyond float32 once it is normalised" if math.isfinite(value) else "NaN or infinity"
        column = f" in {self._rows.columns[element]}" if isinstance(self._rows, StringRows) else ""
        return DataError(f"samples must be finite, but {place_of(self._rows, row, self._name)} holds {what}{column}: clean the data")


def _by_channel(values: Sequence[float], rank: int) -> npt.NDArray[np.float64]:
    """Return the values along a sample's first dimension, or one for all."""
    array = np.array(values, np.float64)
    return array.reshape(-1, *(1,) * (rank - 1)) if len(values) > 1 else array.reshape(())
