"""Labels that are names of folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from heron_common.numerics.tensors import Int64Array


class FolderLabels:
    """The folder of each sample, as its place among the sorted names; which class that is, the run says (`LabelReader`)."""

    def __init__(self, names: Sequence[str], places: Int64Array, path: Path) -> None:
        self.names = tuple(names)
        self.path = path
        self._places = places

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows."""
        return self._places.shape

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Return [n] places."""
        return self._places[rows]
