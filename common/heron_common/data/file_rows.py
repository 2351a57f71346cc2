"""Rows of arrays in files, read one by one from disk; nothing is held, so a source may be larger than memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.errors import DataError
from heron_common.numerics.tensors import Int64Array


class FileRows:
    """Rows of a C-ordered array at a byte offset of a file; `stride` bytes from row to row, if other things lie between them."""

    def __init__(self, path: Path, offset: int, *, shape: tuple[int, ...], dtype: np.dtype[Any], stride: int | None = None) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset = offset
        self._shape = shape
        self._dtype = dtype
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._stride = self._row_bytes if stride is None else stride

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of a row."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of one number."""
        return self._dtype

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return the given rows as a new array.

        Raises:
            DataError: the file became shorter since it was opened.

        """
        pieces = [os.pread(self._descriptor, self._row_bytes, self._offset + int(row) * self._stride) for row in rows]
        if any(len(piece) != self._row_bytes for piece in pieces):
            raise DataError("a row could not be read whole: the data file changed while it was in use")
        return np.frombuffer(b"".join(pieces), self._dtype).reshape(len(rows), *self._shape[1:])


class JoinedRows:
    """Rows of several files, one after the other; all have the same type and shape of a row."""

    def __init__(self, parts: Sequence[FileRows]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.shape[0] for part in parts])

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of a row."""
        return int(self._ends[-1]), *self._parts[0].shape[1:]

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return the given rows as a new array.

        Raises:
            DataError: a file became shorter since it was opened.

        """
        result = np.empty((len(rows), *self.shape[1:]), self._parts[0].dtype)
        owners = np.searchsorted(self._ends, rows, side="right")
        for index in np.unique(owners):
            part = self._parts[index]
            places = np.flatnonzero(owners == index)
            result[places] = part.read(rows[places] - (self._ends[index] - part.shape[0]))
        return result
