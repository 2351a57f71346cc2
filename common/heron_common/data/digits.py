"""scikit-learn's handwritten digits, read from its installed data file: importing scikit-learn would cost 85 MB of memory."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.errors import ConfigurationError, DataError
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import DataSpecification

DIGITS_SPECIFICATION = DataSpecification("digits", (1, 8, 8), num_classes=10, mean=4.8, standard_deviation=16.0)

_NUM_TEST = 360
_SPLIT_KEY = np.array([0x48455244, 0x31474954], np.uint64)


class MemoryRows:
    """Rows of an array that is small enough to keep."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of a row."""
        return self._array.shape

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return the given rows as a new array."""
        return self._array[rows]


def digits_file() -> Path:
    """Return where the installed scikit-learn keeps its digits.

    Raises:
        DataError: scikit-learn is not installed, or has no such file.

    """
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if path is None or not path.is_file():
        raise DataError(
            "data source 'digits' reads the file that scikit-learn ships, which is not installed here: pip install 'heron-sfl[digits]'"
        )
    return path


def open_digits(part: str) -> tuple[MemoryRows, MemoryRows]:
    """Open `train` (1437 samples) or `test` (360); the split is fixed and shuffled once for all.

    Raises:
        ConfigurationError: another part is asked for.
        DataError: the file is missing or damaged.

    """
    if part not in ("train", "test"):
        raise ConfigurationError(f"unknown part {part!r} of data source 'digits': write digits:train or digits:test")
    path = digits_file()
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            # Row by row: a list of all numbers as strings would cost 5 MB of memory.
            table = np.array([np.array(line.split(","), np.float32) for line in file])
        if table.shape != (1797, 65):
            raise ValueError(f"shape {table.shape}")
    except (OSError, EOFError, ValueError, zlib.error) as exc:
        raise DataError(f"{path} is damaged ({exc}): reinstall scikit-learn") from exc
    order = np.argsort(np.random.Philox(key=_SPLIT_KEY).random_raw(len(table)), kind="stable")
    rows = table[order[_NUM_TEST:] if part == "train" else order[:_NUM_TEST]]
    return MemoryRows(rows[:, :64].reshape(-1, 1, 8, 8)), MemoryRows(rows[:, 64].astype(np.int64))
