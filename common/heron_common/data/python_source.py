"""Data by the user's own function: two arrays, or an object that returns one sample at a time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.data.digits import MemoryRows
from heron_common.data.rows import RowReader, StringRows, check_characters
from heron_common.errors import ConfigurationError, DataError, HeronError
from heron_common.numerics.tensors import Int64Array

PYTHON_USAGE = "python:package.module:callable (returns arrays x and y, or an object with len() whose [i] is one x and y)"


def open_python(argument: str) -> tuple[RowReader, RowReader]:
    """Import the module, from the current directory too, call the function and check what it returns.

    Raises:
        ConfigurationError: the argument names no module and callable, or they do not exist.
        DataError: the call fails, or returns something else.

    """
    module_name, _, function_name = argument.partition(":")
    if not module_name or not function_name.isidentifier():
        raise ConfigurationError(f"data source 'python' needs a module and a callable, not {argument!r}: write {PYTHON_USAGE}")
    # As `python -m` has it: the user's module lies where the client is started.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(
            f"data source 'python:{argument}' cannot be imported ({exc}): check the names and the current directory"
        ) from exc
    except Exception as exc:
        raise _failed(argument, f"failed while it was imported ({type(exc).__name__}: {exc})") from exc
    try:
        returned = function()
    except Exception as exc:
        raise _failed(argument, f"failed ({type(exc).__name__}: {exc})") from exc
    if isinstance(returned, tuple):
        if len(returned) != 2:
            raise _failed(argument, f"should return x and y, but returned {len(returned)} values")
        x, y = (_array(value, name, argument) for value, name in zip(returned, ("x", "y"), strict=True))
        return _rows(x, argument), _rows(y, argument)
    if not (hasattr(returned, "__len__") and hasattr(returned, "__getitem__")):
        raise _failed(
            argument, f"should return arrays (x, y) or an object with __len__ and __getitem__, but returned {type(returned).__name__}"
        )
    return _object_rows(returned, argument)


def _failed(argument: str, what: str) -> DataError:
    return DataError(f"data source 'python:{argument}' {what}: mend the function")


def _array(value: Any, name: str, argument: str) -> npt.NDArray[Any]:
    if _has_masked(value):
        raise _failed(argument, f"returned {name} with masked values, which are none to train on; fill them or leave their samples out")
    try:
        array = np.asarray(value)
    except ValueError as exc:
        raise _failed(argument, f"should return {name} as an array, but its rows differ in shape ({exc})") from exc
    except Exception as exc:
        raise _failed(argument, f"should return {name} as an array, but it cannot be made one ({type(exc).__name__}: {exc})") from exc
    if array.dtype.kind == "O" and all(isinstance(element, str) for element in array.flat):
        return array
    if array.dtype.kind not in "fiubU":
        raise _failed(argument, f"should return {name} of numbers or strings, but returned {array.dtype}")
    # numpy writes numbers beside strings as strings, and a missing one as "nan".
    if array.dtype.kind == "U" and not isinstance(value, np.ndarray | str) and not _all_strings(value):
        raise _failed(argument, f"should return {name} of numbers or of strings, but mixes them")
    return array


def _has_masked(value: Any) -> bool:
    """Return whether a masked array is in there whose mask numpy would drop."""
    if isinstance(value, np.ma.MaskedArray):
        return bool(np.ma.getmaskarray(value).any())
    return isinstance(value, list | tuple) and any(_has_masked(element) for element in value)


def _all_strings(value: Any) -> bool:
    return all(isinstance(element, str) for element in np.asarray(value, object).flat)


def _rows(array: npt.NDArray[Any], argument: str) -> RowReader:
    if array.ndim == 0:
        raise _failed(argument, "should return arrays with a row for each sample, but returned a single value")
    if array.dtype.kind not in "OU":
        return MemoryRows(array)
    table = array.reshape(len(array), -1)
    place = _place(argument)
    for index, row in enumerate(table):
        check_characters(row.tolist(), place, index)
    return StringRows(len(table), _columns(table.shape[1]), row=lambda row: table[row].tolist(), place=place, is_named=False)


def _columns(count: int) -> list[str]:
    return [f"column {number}" for number in range(count)]


def _place(argument: str) -> Any:
    return lambda row: f"sample {row} of 'python:{argument}'"


def _object_rows(samples: Any, argument: str) -> tuple[RowReader, RowReader]:
    count = len(samples)
    if count == 0:
        raise DataError(f"data source 'python:{argument}' is empty: at least one sample is needed")
    first = _Samples(samples, argument).sample(0)
    readers: list[RowReader] = []
    for part in (0, 1):
        if first[part].dtype.kind in "OU":
            rows = _ObjectRows(_Samples(samples, argument), count=count, part=part, first=first[part])
            columns = _columns(first[part].size)
            readers.append(StringRows(count, columns, row=rows.strings, place=_place(argument), is_named=False, is_checked=False))
        else:
            readers.append(_ObjectRows(_Samples(samples, argument), count=count, part=part, first=first[part]))
    return readers[0], readers[1]


class _Samples:
    """The user's object, behind the checks of its contract."""

    def __init__(self, samples: Any, argument: str) -> None:
        self._samples = samples
        self.argument = argument

    def sample(self, index: int) -> Sequence[npt.NDArray[Any]]:
        try:
            sample = self._samples[index]
        except HeronError:
            raise
        except Exception as exc:
            raise _failed(self.argument, f"failed at sample {index} ({type(exc).__name__}: {exc})") from exc
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise _failed(self.argument, f"should return x and y for sample {index}, but returned {type(sample).__name__}")
        return [_array(value, name, self.argument) for value, name in zip(sample, ("x", "y"), strict=True)]


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
            raise _failed(
                self._samples.argument,
                f"should return {'xy'[self._part]} {self._first.dtype}{list(self._first.shape)} as for its first sample, "
                f"but returned {value.dtype}{list(value.shape)} for sample {row}",
            )
        return value
