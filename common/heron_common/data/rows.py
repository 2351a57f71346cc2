"""What sources are made of: readers of rows, of numbers or of strings, that do not keep what they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from heron_common.data.numbers import decimal_number
from heron_common.errors import DataError
from heron_common.numerics.tensors import Int64Array


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
    """Rows of one string for each of some columns: text, numbers still to be read, or names of classes.

    Attributes:
        columns: how they are called.
        is_named: whether somebody gave them these names, or they are only counted.
        is_rest: whether they are "every other column", in the order of the file.
        is_checked: whether every row was looked at when the source was opened.

    """

    def __init__(
        self,
        count: int,
        columns: Sequence[str],
        *,
        row: Callable[[int], Sequence[str]],
        place: Callable[[int], str],
        is_named: bool = True,
        is_rest: bool = False,
        is_checked: bool = True,
    ) -> None:
        """`row` reads the strings of one row, `place` says where it stands, for messages."""
        self.columns = tuple(columns)
        self.place = place
        self.is_named = is_named
        self.is_rest = is_rest
        self.is_checked = is_checked
        self._count = count
        self._row = row

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then columns."""
        return self._count, len(self.columns)

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return [n, columns] strings.

        Raises:
            DataError: one holds a character that is no text.

        """
        result = np.empty((len(rows), len(self.columns)), object)
        for place, row in enumerate(rows):
            strings = self._row(int(row))
            check_characters(strings, self.place, int(row))
            result[place] = strings
        return result

    def picked(self, places: Sequence[int]) -> StringRows:
        """Return the columns at these places, in this order."""
        return StringRows(
            self._count,
            [self.columns[place] for place in places],
            row=lambda row: list(map(self._row(row).__getitem__, places)),
            place=self.place,
            is_named=self.is_named,
            is_rest=self.is_rest,
            is_checked=self.is_checked,
        )


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


def place_of(reader: RowReader, row: int, source_name: str) -> str:
    """Return where a row stands, for messages: its line or file, or its number from 0 where it has neither."""
    place: Callable[[int], str] | None = getattr(reader, "place", None)
    return place(row) if place is not None else f"sample {row} of {source_name!r}"


def check_characters(strings: Sequence[str], place: Callable[[int], str], row: int) -> None:
    """Refuse half of a surrogate pair: JSON and Python can hold one, UTF-8 and tokenizers cannot.

    Raises:
        DataError: there is one; the message names where and which.

    """
    for text in strings:
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            code = ord(text[exc.start])
            raise DataError(f"{place(row)} holds a character that is no text (half of a pair, U+{code:04X}): mend it there") from None


def numbers_of(strings: StringRows, raw: npt.NDArray[Any], rows: Int64Array) -> npt.NDArray[np.float64]:
    """Return rows of strings, [n, columns], as numbers.

    Raises:
        DataError: one is none; the message names place and column.

    """
    numbers = np.empty(raw.shape, np.float64)
    for row, fields, target in zip(rows, raw, numbers, strict=True):
        for place, (column, field) in enumerate(zip(strings.columns, fields, strict=True)):
            try:
                target[place] = decimal_number(field)
            except ValueError:
                raise DataError(
                    f"{strings.place(int(row))} should have a number in {column}, but has {field[:40]!r}: mend it or leave the column out"
                ) from None
    return numbers
