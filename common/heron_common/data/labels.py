"""Labels as a run wants them: class names and numbers to classes, columns of numbers to vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.assignment import DataSpecification, Task
from heron_common.data.image_folder import FolderLabels
from heron_common.data.rows import RowReader, StringRows
from heron_common.errors import DataError
from heron_common.tensors import Int64Array

_NAMES_SHOWN = 20


class LabelReader:
    """Reads classes (int64 [n]) or numbers (float32 [n, num_classes]) from whatever a source has."""

    def __init__(self, labels: RowReader, specification: DataSpecification, source_name: str) -> None:
        """Compare what can be compared without reading.

        Raises:
            DataError: the names of folders are not the run's classes.

        """
        self._labels = labels
        self._specification = specification
        self._name = source_name
        self._numbers = {name: number for number, name in enumerate(specification.class_names)}
        self._of_folder = self._folder_classes(labels) if isinstance(labels, FolderLabels) and self._numbers else None

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return the labels of rows.

        Raises:
            DataError: a label is not what the run expects.

        """
        raw = self._labels.read(rows)
        if self._specification.task is Task.REGRESSION:
            return self._vectors(raw, rows)
        if isinstance(self._labels, StringRows):
            return np.array([self._class_of(fields, int(row)) for fields, row in zip(raw, rows, strict=True)], np.int64)
        if raw.dtype.kind not in "iu" or raw.ndim != 1:
            raise DataError(
                f"the run expects a whole number as label, its class, but {self._name!r} has labels {raw.dtype}{list(raw.shape[1:])}: "
                "choose other labels or another --data-spec on the server"
            )
        # Before the conversion: a large unsigned number would become a negative one.
        bad = raw[(raw < 0) | (raw >= self._specification.num_classes)]
        if bad.size:
            raise self._out_of_range(int(bad[0]))
        classes = raw.astype(np.int64)
        return classes if self._of_folder is None else self._of_folder[classes]

    def _folder_classes(self, labels: FolderLabels) -> Int64Array:
        for name in labels.names:
            if name not in self._numbers:
                raise DataError(f"class folder {labels.path / name} is none of the run's classes {self._names()}: rename or remove it")
        return np.array([self._numbers[name] for name in labels.names], np.int64)

    def _vectors(self, raw: npt.NDArray[Any], rows: Int64Array) -> npt.NDArray[Any]:
        num_outputs = self._specification.num_classes
        if isinstance(self._labels, StringRows):
            numbers = [numbers_of(self._labels, fields, int(row)) for fields, row in zip(raw, rows, strict=True)]
            raw = np.array(numbers, np.float64).reshape(len(rows), -1)
        vectors = raw.astype(np.float32).reshape(len(rows), -1)
        if raw.ndim > 2 or vectors.shape[1] != num_outputs:
            raise DataError(
                f"the run expects {num_outputs} numbers as label, but {self._name!r} has labels {list(raw.shape[1:])}: "
                "choose other labels or another --data-spec on the server"
            )
        if not np.isfinite(vectors).all():
            raise DataError(f"labels must be finite, but {self._name!r} has NaN or infinity: clean the data")
        return vectors

    def _class_of(self, fields: npt.NDArray[Any], row: int) -> int:
        if len(fields) != 1:
            raise DataError(f"the run expects one label, a class, but {self._name!r} names {len(fields)} columns: name one")
        text = fields[0]
        number = self._numbers.get(text)
        if number is not None:
            return number
        try:
            number = int(text)
        except ValueError:
            known = f"the run's classes are {self._names()}" if self._numbers else "the run's classes have no names, only numbers"
            raise DataError(f"{self._place(row)} has label {text!r}, but {known}: mend it or the server's --data-spec") from None
        if not 0 <= number < self._specification.num_classes:
            raise self._out_of_range(number, f" ({self._place(row)})")
        return number

    def _place(self, row: int) -> str:
        return self._labels.place(row) if isinstance(self._labels, StringRows) else f"sample {row} of {self._name!r}"

    def _out_of_range(self, label: int, where: str = "") -> DataError:
        return DataError(
            f"the run expects labels from 0 to {self._specification.num_classes - 1}, but {self._name!r} has {label}{where}: "
            "fix the labels or the server's --data-spec"
        )

    def _names(self) -> str:
        names = self._specification.class_names
        return ", ".join(names[:_NAMES_SHOWN]) + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")


def numbers_of(strings: StringRows, fields: npt.NDArray[Any], row: int) -> list[float]:
    """Read a row of strings as numbers.

    Raises:
        DataError: one is none; the message names place and column.

    """
    numbers = []
    for column, field in zip(strings.columns, fields, strict=True):
        try:
            numbers.append(float(field))
        except ValueError:
            raise DataError(
                f"{strings.place(row)} should have a number in {column}, but has {field[:40]!r}: mend it or leave the column out"
            ) from None
    return numbers
