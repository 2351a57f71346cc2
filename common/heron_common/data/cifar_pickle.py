"""The python version of CIFAR-10: pickles of byte arrays, read without letting a pickle call anything, not even numpy."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from heron_common.errors import DataError

_IMAGE_BYTES = 3 * 32 * 32
_ROWS_AT_ONCE = 1024

# All that a pickled array names, by Python 2 and by every later numpy.
_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}


def write_records(pickled: IO[bytes], name: str, output: IO[bytes]) -> None:
    """Write a pickled batch as the binary version has it: for each image a label byte, then 3072 bytes; one batch is in memory.

    Raises:
        DataError: the pickle names anything but an array of bytes, is damaged, or holds no CIFAR-10 batch.

    """
    try:
        pixels, labels = _fields(_InertUnpickler(pickled, encoding="bytes").load())
    except OSError:
        raise
    # A damaged pickle may raise anything at all.
    except Exception as exc:
        raise DataError(f"{name} is not a published CIFAR-10 batch ({exc}): fetch cifar-10-python.tar.gz again") from exc
    for start in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        output.write(np.concatenate([labels[rows, None], pixels[rows]], axis=1).tobytes())


@dataclass(eq=False, slots=True)
class _Recorded:
    """Stands for a numpy function and for what it would return: keeps what the pickle says and does nothing with it.

    numpy's own functions would trust a pickle: a dtype may be told to take bytes for pointers to objects.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __call__(self, *arguments: Any) -> _Recorded:
        return _Recorded(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle._Unpickler):
    """Builds lists, dictionaries, strings and numbers; arrays are recorded, everything else is refused.

    The reader in Python: the one in C takes room for what a pickle claims before it has come, be it gigabytes.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it may hold arrays of bytes only, but names {module}.{name}")
        return _Recorded(name)


def _fields(batch: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    if not isinstance(batch, dict):
        raise ValueError("it holds no dictionary")
    # Keys are bytes as published, text when Python 3 wrote them anew.
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    pixels = _array(data)
    if pixels.ndim != 2 or pixels.shape[1] != _IMAGE_BYTES:
        raise ValueError(f"its images have shape {list(pixels.shape)} instead of [n, {_IMAGE_BYTES}]")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise ValueError("its labels are not a list of numbers from 0 to 9")
    if len(labels) != len(pixels):
        raise ValueError(f"it has {len(pixels)} images but {len(labels)} labels")
    return pixels, np.array(labels, np.uint8)


def _array(recorded: Any) -> npt.NDArray[np.uint8]:
    match recorded:
        case _Recorded("_reconstruct", _, (_, tuple() as shape, _Recorded("dtype", (kind, *_)), fortran, bytes() as data)):
            order = "F" if fortran else "C"
        case _Recorded(
            "_frombuffer", (bytes() | bytearray() as data, _Recorded("dtype", (kind, *_)), tuple() as shape, "C" | "F" as order)
        ):
            pass
        case _:
            raise ValueError("its images are not an array of bytes")
    if kind not in (b"u1", "u1"):
        raise ValueError(f"its images are of type {kind!r} instead of unsigned bytes")
    # A view: numpy checks that the shape fits the length of the data.
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if order == "F" else "C")
