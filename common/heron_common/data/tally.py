"""What samples look like to the model: range and mean of x after normalisation, classes, and how much of text is padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import PADDING, DataSpecification, Task
from heron_common.specification.text_lengths import smallest_lengths
from heron_common.terminal.figures import human_number, human_share

MOST_MEAN, MOST_DEVIATION, LEAST_DEVIATION = 2.0, 4.0, 0.05
"""Pixels of any usual normalisation lie well within, and so do pixels over 255; digits from 0 to 16 and raw pixels do not."""

FAR_FROM_NORMAL = (
    "values of x are far from a mean of 0 and a deviation of 1 after normalisation, which costs accuracy: --data-spec of the server takes "
    ":MEAN:STANDARD_DEVIATION, and here the data may not be in the units that the run expects"
)


class SampleTally:
    """Counts what it is shown; a few numbers, however many samples there are."""

    def __init__(self, specification: DataSpecification) -> None:
        self._specification = specification
        self.num_samples = 0
        self.least, self.most = math.inf, -math.inf
        self._count, self._sum, self._squares = 0, 0.0, 0.0
        self._classes: Int64Array | None = None

    def add(self, x: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        """Count samples, and their labels where they are given: x is [n, ...] as the model gets it."""
        self.num_samples += len(x)
        if self._specification.tokens:
            self._sum += float((x != PADDING).sum())
            lengths = self._specification.lengths
            self._count += int(smallest_lengths(x, None, lengths).sum()) if lengths else x.size
        elif x.size:
            self.least, self.most = min(self.least, float(x.min())), max(self.most, float(x.max()))
            self._count += x.size
            self._sum += float(x.sum(dtype=np.float64))
            self._squares += float(np.square(x, dtype=np.float64).sum())
        if y is not None and self._specification.task is Task.CLASSIFICATION:
            counts = np.bincount(y, minlength=self._specification.num_classes).astype(np.int64)
            self._classes = counts if self._classes is None else self._classes + counts

    @property
    def mean(self) -> float:
        """Of all elements of x."""
        return self._sum / max(1, self._count)

    @property
    def deviation(self) -> float:
        """The standard deviation of all elements of x."""
        return math.sqrt(max(0.0, self._squares / max(1, self._count) - self.mean**2))

    @property
    def padded_share(self) -> float:
        """Of the tokens that the model computes."""
        return 1 - self._sum / max(1, self._count)

    @property
    def is_far_from_normal(self) -> bool:
        """Whether the numbers are of another scale than what models learn from."""
        if self._specification.tokens or not self._count:
            return False
        return abs(self.mean) > MOST_MEAN or not LEAST_DEVIATION <= self.deviation <= MOST_DEVIATION

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of each figure, for a page."""
        if not self._count:
            return []
        if self._specification.tokens:
            return [("padding", f"{human_share(self.padded_share)} of the tokens that the run computes")]
        extent = f"{human_number(self.least)} to {human_number(self.most)} after normalisation"
        return [("values of x", f"{extent}, mean {human_number(self.mean)}, standard deviation {human_number(self.deviation)}")]

    def fields(self) -> dict[str, Any]:
        """Return the same for a line of a log, and how many samples of each class there were."""
        named: dict[str, Any] = {"samples": self.num_samples}
        if self._specification.tokens:
            named["padded_share"] = self.padded_share
        else:
            named |= {"least": self.least, "most": self.most, "mean": self.mean, "standard_deviation": self.deviation}
        if self._classes is not None:
            names = self._specification.class_names or tuple(map(str, range(len(self._classes))))
            named["classes"] = ",".join(f"{name}:{count}" for name, count in zip(names, self._classes, strict=False) if count)
        return named
