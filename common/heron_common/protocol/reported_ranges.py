"""What a client may say about its own round: a range for every field of `LocalStatistics`, so that no sum, square or root of them overflows.

Ranges are wide: a loss is a float32, a difference one over a smoothing radius. They refuse what cannot be, not what is odd.
"""

from __future__ import annotations

import dataclasses
import math

from heron_common.protocol.messages import LocalStatistics

_COUNT = (0, 10**15)
"""A million steps of a billion samples."""

_LOSS = 1e39
_DERIVATIVE = 1e45
_SECONDS = (0.0, 1e8)
"""Three years: sums of a million rounds stay exact to the millisecond's order."""

RANGES: dict[str, tuple[float, float]] = {
    "second_moment": (0.0, _DERIVATIVE**2),
    "mean_local_loss": (-_LOSS, _LOSS),
    "forward_passes": _COUNT,
    "differences": _COUNT,
    "difference_mean": (-_DERIVATIVE, _DERIVATIVE),
    "difference_variance": (0.0, _DERIVATIVE**2),
    "differences_clipped": _COUNT,
    "differences_non_finite": _COUNT,
    "step_seconds": _SECONDS,
    "upload_wait_seconds": _SECONDS,
    "peak_memory_bytes": (0, 1 << 50),
    "peak_anonymous_bytes": (0, 1 << 50),
    "derivative_quantile": (0.0, _DERIVATIVE),
    "steps_skipped": _COUNT,
    "diverged": (0, 1),
    "forward_equivalents": _COUNT,
}
"""Lowest and highest value by field; a test compares the two."""


def out_of_range(statistics: LocalStatistics) -> str:
    """Return which field is outside its range and what came, empty if none is."""
    for name, (low, high) in RANGES.items():
        value = getattr(statistics, name)
        if not low <= value <= high:
            return f"the statistic {name!r} was expected to be a number from {low:g} to {high:g}, but {value} came"
    return ""


def within_range(name: str, value: float | None) -> float:
    """Return a figure drawn into its field's range; what is no number is the lowest that is not negative."""
    low, high = RANGES[name]
    return max(low, 0.0) if value is None or math.isnan(value) else min(max(value, low), high)


def known_figure(name: str, value: float | None) -> float:
    """Return a running figure that an earlier version may have taken from a client as it came; 0, unknown, where it cannot be."""
    low, high = RANGES[name]
    return value if value is not None and low <= value <= high else 0.0


def within_ranges(statistics: LocalStatistics) -> LocalStatistics:
    """Return statistics that an earlier version accepted, each drawn into its range."""
    # A flag is one, whatever stands for true.
    numbers = {name: getattr(statistics, name) for name in RANGES if name != "diverged"}
    bounded = {name: type(value)(within_range(name, value)) for name, value in numbers.items()}
    return dataclasses.replace(statistics, **bounded)
