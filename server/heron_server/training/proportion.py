"""What is ordinary in a run, so that a single upload cannot ruin it: a rule over lengths, without a clock, a client's name or a model.

Of each figure (activations, the gradients of back and head) the latest values of steps that were taken are kept. The reference is the largest median that
they ever had: one upload cannot move a median, and a model that has learnt, whose gradients have become small, may still meet a sample as hard as the first.

Gates (`gates.py`) compare clients with each other and know more; this stands with and without them, and only against what is out of all proportion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum

import numpy as np

from heron_common.numerics.tensors import Float64Array

WINDOW = 32
"""Values that are kept of a figure."""

ESTABLISHED = 8
"""Steps after which a median is a fair measure: one upload, or three, cannot be it."""

LONGEST_STEP = 16.0
"""A gradient is shortened to so many times the reference: one such step adds a quarter to Adam's second moment, which forgets over a thousand steps."""

OUT_OF_PROPORTION = {"activations": 1e3, "back": 1e4, "head": 1e4}
"""So many times the reference is no sample any more. Activations also move running statistics of a back, which nothing can shorten."""

MEMORY_LIMIT = 100.0
"""Moments that remember a gradient so many times the first reference are forgotten: it came before anybody could know."""

SUSPICIOUS = 10.0
"""Activations so many times the reference are looked at alone before they are mixed with others."""


class StepReason(StrEnum):
    """Why a step was not taken: what would come of it is not finite, or it is out of all proportion."""

    NON_FINITE = "non_finite"
    OUT_OF_PROPORTION = "out_of_proportion"


@dataclass(frozen=True)
class StepRefusal:
    """Why a step was not taken, with the figure's name, what it measured and what the limit was."""

    reason: StepReason
    figure: str
    _: KW_ONLY
    measured: float
    limit: float


class Proportion:
    """References of figures by name. Not thread-safe: the trainer's thread calls it, in the order of training, so that a replay judges alike."""

    def __init__(self) -> None:
        self._latest: dict[str, list[float]] = {}
        self._references: dict[str, float] = {}
        self._steps = 0

    def judge(self, figure: str, measured: float) -> StepRefusal | None:
        """Return why nothing with this figure may be trained on; None if it may."""
        if not math.isfinite(measured):
            return StepRefusal(StepReason.NON_FINITE, figure, measured=measured, limit=math.inf)
        limit = self._times(figure, OUT_OF_PROPORTION[figure])
        return StepRefusal(StepReason.OUT_OF_PROPORTION, figure, measured=measured, limit=limit) if measured > limit else None

    def longest(self, figure: str) -> float:
        """Return the length to which a gradient is shortened; infinity before anything is known."""
        return self._times(figure, LONGEST_STEP)

    def knows(self, figure: str) -> bool:
        """Whether there is a reference to compare it with."""
        return self._references.get(figure, 0.0) > 0

    def is_ordinary(self, figure: str, measured: float) -> bool:
        """Whether a figure is known to be like the others."""
        return self.knows(figure) and measured <= self._times(figure, SUSPICIOUS)

    def note(self, figures: Mapping[str, float]) -> bool:
        """A step with these figures was taken; return whether moments have to be forgotten, because one of the first steps was out of proportion."""
        self._steps += 1
        for figure, measured in figures.items():
            latest = self._latest.setdefault(figure, [])
            latest.append(measured)
            del latest[:-WINDOW]
            if self._steps >= ESTABLISHED:
                self._references[figure] = max(self._references.get(figure, 0.0), sorted(latest)[(len(latest) - 1) // 2])
        if self._steps != ESTABLISHED:
            return False
        return any(max(self._latest[figure]) > self._times(figure, MEMORY_LIMIT) for figure in figures)

    def _times(self, figure: str, factor: float) -> float:
        # Nothing is out of proportion to nothing: a back that starts at zero has no gradient yet.
        return factor * self._references.get(figure, 0.0) or math.inf

    def arrays(self) -> dict[str, Float64Array]:
        """Return the whole state as arrays by name; `restore` takes it back, exactly."""
        return {
            figure: np.array([self._steps, self._references.get(figure, 0.0), *latest], np.float64)
            for figure, latest in self._latest.items()
        }

    def restore(self, arrays: Mapping[str, Float64Array]) -> None:
        """Go back to a state that `arrays` returned; without any begin anew."""
        self.__init__()  # type: ignore[misc]
        for figure, (steps, reference, *latest) in ((name, array.tolist()) for name, array in arrays.items()):
            self._steps = int(steps)
            self._latest[figure] = latest
            if reference:
                self._references[figure] = reference
