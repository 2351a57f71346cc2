"""What sources are made of: readers of rows, of numbers or of strings, that do not keep what they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from heron_common.errors import DataError
from heron_common.tensors import Int64Array


class RowReader(Protocol):
    """Random access to the rows of one array; what it reads it does not keep."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of a row."""
        ...

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return the given rows as a new array."""
        ...


class StringRows:
    """Rows of one string for each of some columns: text, numbers still to be read, or names of classes."""

    def __init__(self, count: int, columns: Sequence[str], row: Callable[[int], Sequence[str]], place: Callable[[int], str]) -> None:
        """`row` reads the strings of one row, `place` says where it stands, for messages."""
        self.columns = tuple(columns)
        self.place = place
        self._count = count
        self._row = row

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then columns."""
        return self._count, len(self.columns)

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return [n, columns] strings."""
        result = np.empty((len(rows), len(self.columns)), object)
        for place, row in enumerate(rows):
            result[place] = self._row(int(row))
        return result


class NoLabels:
    """Stands for the labels of samples that have none, like running text."""

    def __init__(self, count: int, why: str) -> None:
        self._count = count
        self._why = why

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows."""
        return (self._count,)

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Refuse.

        Raises:
            DataError: always.

        """
        raise DataError(self._why)
