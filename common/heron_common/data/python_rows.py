"""Data in this process: two arrays, or an object that returns one sample at a time, behind the checks of what a source holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.data.digits import MemoryRows
from heron_common.data.rows import RowReader, StringRows, check_characters
from heron_common.errors import DataError, HeronError
from heron_common.numerics.tensors import Int64Array


@dataclass(frozen=True)
class Origin:
    """Whom sentences speak of: `called`, and what it `gave`, `should` give, and a remedy."""

    called: str
    _: KW_ONLY
    gave: str
    should: str
    remedy: str

    def failed(self, what: str) -> DataError:
        """Return an error that says what is wrong with it."""
        return DataError(f"{self.called} {what}: {self.remedy}")

    def place(self, row: int) -> str:
        """Return where a sample stands, for messages."""
        return f"sample {row} of {self.called.removeprefix('data source ')}"


def rows_of(value: Any, origin: Origin) -> tuple[RowReader, RowReader]:
    """Return readers of the samples and the labels of a pair of arrays, or of an object with a length whose [i] is one x and y.

    Raises:
        DataError: it is neither, or something in it is no number and no string.

    """
    if isinstance(value, tuple):
        if len(value) != 2:
            raise origin.failed(f"{origin.should} x and y, but {origin.gave} {len(value)} values")
        x, y = (_array(part, name, origin) for part, name in zip(value, ("x", "y"), strict=True))
        return _rows(x, origin), _rows(y, origin)
    if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        raise origin.failed(
            f"{origin.should} arrays (x, y) or an object with __len__ and __getitem__, but {origin.gave} {type(value).__name__}"
        )
    return _object_rows(value, origin)


def _array(value: Any, name: str, origin: Origin) -> npt.NDArray[Any]:
    if _has_masked(value):
        raise origin.failed(f"{origin.gave} {name} with masked values, which are none to train on; fill them or leave their samples out")
    try:
        array = np.asarray(value)
    except ValueError as exc:
        raise origin.failed(f"{origin.should} {name} as an array, but its rows differ in shape ({exc})") from exc
    except Exception as exc:
        raise origin.failed(f"{origin.should} {name} as an array, but it cannot be made one ({type(exc).__name__}: {exc})") from exc
    if array.dtype.kind == "O" and all(isinstance(element, str) for element in array.flat):
        return array
    if array.dtype.kind not in "fiubU":
        raise origin.failed(f"{origin.should} {name} of numbers or strings, but {origin.gave} {array.dtype}")
    # numpy writes numbers beside strings as strings, and a missing one as "nan".
    if array.dtype.kind == "U" and not isinstance(value, np.ndarray | str) and not _all_strings(value):
        raise origin.failed(f"{origin.should} {name} of numbers or of strings, but mixes them")
    return array


def _has_masked(value: Any) -> bool:
    """Return whether a masked array is in there whose mask numpy would drop."""
    if isinstance(value, np.ma.MaskedArray):
        return bool(np.ma.getmaskarray(value).any())
    return isinstance(value, list | tuple) and any(_has_masked(element) for element in value)


def _all_strings(value: Any) -> bool:
    return all(isinstance(element, str) for element in np.asarray(value, object).flat)


def _rows(array: npt.NDArray[Any], origin: Origin) -> RowReader:
    if array.ndim == 0:
        raise origin.failed(f"{origin.should} arrays with a row for each sample, but {origin.gave} a single value")
    if array.dtype.kind not in "OU":
        return MemoryRows(array)
    table = array.reshape(len(array), -1)
    place = origin.place
    for index, row in enumerate(table):
        check_characters(row.tolist(), place, index)
    return StringRows(len(table), _columns(table.shape[1]), row=lambda row: table[row].tolist(), place=place, is_named=False)


def _columns(count: int) -> list[str]:
    return [f"column {number}" for number in range(count)]


def _object_rows(samples: Any, origin: Origin) -> tuple[RowReader, RowReader]:
    count = len(samples)
    if count == 0:
        raise DataError(f"{origin.called} is empty: at least one sample is needed")
    first = _Samples(samples, origin).sample(0)
    readers: list[RowReader] = []
    for part in (0, 1):
        if first[part].dtype.kind in "OU":
            rows = _ObjectRows(_Samples(samples, origin), count=count, part=part, first=first[part])
            columns = _columns(first[part].size)
            readers.append(StringRows(count, columns, row=rows.strings, place=origin.place, is_named=False, is_checked=False))
        else:
            readers.append(_ObjectRows(_Samples(samples, origin), count=count, part=part, first=first[part]))
    return readers[0], readers[1]


class _Samples:
    """The user's object, behind the checks of its contract."""

    def __init__(self, samples: Any, origin: Origin) -> None:
        self._samples = samples
        self.origin = origin

    def sample(self, index: int) -> Sequence[npt.NDArray[Any]]:
        try:
            sample = self._samples[index]
        except HeronError:
            raise
        except Exception as exc:
            raise self.origin.failed(f"failed at sample {index} ({type(exc).__name__}: {exc})") from exc
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise self.origin.failed(f"{self.origin.should} x and y for sample {index}, but {self.origin.gave} {type(sample).__name__}")
        return [_array(value, name, self.origin) for value, name in zip(sample, ("x", "y"), strict=True)]


class _ObjectRows:
    """One part, x or y, of an object's samples; all have the shape and the kind of the first."""

    def __init__(self, samples: _Samples, *, count: int, part: int, first: npt.NDArray[Any]) -> None:
        self._samples = samples
        self._count = count
        self._part = part
        self._first = first

    @property
    def shape(self) -> tuple[int, ...]:
        return self._count, *self._first.shape

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        if not len(rows):
            return np.empty((0, *self._first.shape), self._first.dtype)
        return np.stack([self._one(int(row)) for row in rows])

    def strings(self, row: int) -> list[str]:
        return [str(value) for value in self._one(row).reshape(-1)]

    def _one(self, row: int) -> npt.NDArray[Any]:
        value = self._samples.sample(row)[self._part]
        if value.shape != self._first.shape or value.dtype.kind != self._first.dtype.kind:
            raise self._samples.origin.failed(
                f"{self._samples.origin.should} {'xy'[self._part]} {self._first.dtype}{list(self._first.shape)} as for its first sample, "
                f"but {self._samples.origin.gave} {value.dtype}{list(value.shape)} for sample {row}",
            )
        return value
