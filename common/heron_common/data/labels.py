"""Labels as a run wants them: class names and numbers to classes, columns of numbers to vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.data.folder_labels import FolderLabels
from heron_common.data.numbers import is_whole_number, whole_number
from heron_common.data.rows import RowReader, StringRows, numbers_of, place_of
from heron_common.errors import DataError
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import DataSpecification, Task

_NAMES_SHOWN = 20


class LabelReader:
    """Reads classes (int64 [n]) or numbers (float32 [n, num_classes]) from whatever a source has.

    A label is the name of a class, or its number. Where names of classes are numbers themselves, like stars from 1 to 5, a number is such a name and nothing else.
    """

    def __init__(self, labels: RowReader, specification: DataSpecification, source_name: str) -> None:
        """Compare what can be compared without reading.

        Raises:
            DataError: the names of folders are not the run's classes.

        """
        self._labels = labels
        self._specification = specification
        self._name = source_name
        self._numbers = {name: number for number, name in enumerate(specification.class_names)}
        self._numbers_are_names = any(map(is_whole_number, specification.class_names))
        self._of_folder = self._folder_classes(labels) if isinstance(labels, FolderLabels) else None

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return the labels of rows.

        Raises:
            DataError: a label is not what the run expects.

        """
        raw = self._labels.read(rows)
        if self._of_folder is not None:
            classes: Int64Array = self._of_folder[raw]
            return classes
        if self._specification.task is Task.REGRESSION:
            return self._vectors(raw, rows)
        if isinstance(self._labels, StringRows):
            return np.array([self._class_of(fields, int(row)) for fields, row in zip(raw, rows, strict=True)], np.int64)
        if raw.dtype.kind not in "iu" or raw.ndim != 1:
            raise DataError(
                f"the run expects a whole number as label, its class, but {self._name!r} has labels {raw.dtype}{list(raw.shape[1:])}: "
                "choose other labels or another --data-spec on the server"
            )
        if self._numbers_are_names:
            return np.array([self._class_named(str(label), int(row)) for label, row in zip(raw, rows, strict=True)], np.int64)
        # Before the conversion: a large unsigned number would become a negative one.
        bad = np.flatnonzero((raw < 0) | (raw >= self._specification.num_classes))
        if bad.size:
            place = place_of(self._labels, int(rows[bad[0]]), self._name)
            raise self._out_of_range(int(raw[bad[0]]), remedy=f"fix the labels, first at {place},")
        return raw.astype(np.int64)

    def _folder_classes(self, labels: FolderLabels) -> Int64Array:
        """Return the class of each folder."""
        if self._specification.task is not Task.CLASSIFICATION:
            raise DataError(
                f"the run expects {self._specification.num_classes} numbers as label, but {self._name!r} has classes, the names of its "
                "folders: choose other data or another --data-spec on the server"
            )
        classes: dict[int, str] = {}
        for name in labels.names:
            number = self._folder_class(labels, name)
            if number in classes:
                raise DataError(
                    f"class folders {classes[number]!r} and {name!r} of {labels.path} are both class {number}: put their images into one"
                )
            classes[number] = name
        return np.array(list(classes), np.int64)

    def _folder_class(self, labels: FolderLabels, name: str) -> int:
        folder = labels.path / name
        if self._numbers:
            if name not in self._numbers:
                raise DataError(f"class folder {folder} is none of the run's classes {self._names()}: rename or remove it")
            return self._numbers[name]
        most = self._specification.num_classes - 1
        # Digits alone: "+1" and " 1" are names that somebody gave for another reason.
        if not (name.isascii() and name.isdigit()):
            raise DataError(
                f"class folder {folder} is no number from 0 to {most}, and the run's classes have no names: "
                "name them in the server's --data-spec, like cat,dog, or rename the folder to its class's number"
            )
        if int(name) > most:
            raise self._out_of_range(int(name), f" (class folder {folder})")
        return int(name)

    def _vectors(self, raw: npt.NDArray[Any], rows: Int64Array) -> npt.NDArray[Any]:
        num_outputs = self._specification.num_classes
        if isinstance(self._labels, StringRows):
            raw = numbers_of(self._labels, raw, rows)
        with np.errstate(over="ignore"):
            vectors = raw.astype(np.float32).reshape(len(rows), -1)
        if raw.ndim > 2 or vectors.shape[1] != num_outputs:
            raise DataError(
                f"the run expects {num_outputs} numbers as label, but {self._name!r} has labels {list(raw.shape[1:])}: "
                "choose other labels or another --data-spec on the server"
            )
        bad = np.flatnonzero(~np.isfinite(vectors).all(1))
        if bad.size:
            place = place_of(self._labels, int(rows[bad[0]]), self._name)
            raise DataError(f"labels must be finite, but {self._name!r} has NaN or infinity ({place}): clean the data")
        return vectors

    def _class_of(self, fields: npt.NDArray[Any], row: int) -> int:
        if len(fields) != 1:
            raise DataError(f"the run expects one label, a class, but {self._name!r} names {len(fields)} columns: name one")
        text = fields[0]
        if self._numbers_are_names or text in self._numbers:
            return self._class_named(text, row)
        try:
            number = whole_number(text)
        except ValueError:
            raise self._unknown(text, row) from None
        if not 0 <= number < self._specification.num_classes:
            raise self._out_of_range(number, f" ({place_of(self._labels, row, self._name)})")
        return number

    def _class_named(self, text: str, row: int) -> int:
        if text not in self._numbers:
            raise self._unknown(text, row)
        return self._numbers[text]

    def _unknown(self, text: str, row: int) -> DataError:
        known = f"the run's classes are {self._names()}" if self._numbers else "the run's classes have no names, only numbers"
        place = place_of(self._labels, row, self._name)
        return DataError(f"{place} has label {text[:80]!r}, but {known}: mend it or the server's --data-spec")

    def _out_of_range(self, label: int, where: str = "", remedy: str = "fix the labels") -> DataError:
        return DataError(
            f"the run expects labels from 0 to {self._specification.num_classes - 1}, but {self._name!r} has {label}{where}: "
            f"{remedy} or the server's --data-spec"
        )

    def _names(self) -> str:
        names = self._specification.class_names
        return ", ".join(names[:_NAMES_SHOWN]) + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
