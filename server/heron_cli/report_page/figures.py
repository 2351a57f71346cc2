"""Numbers as people read them, and round ticks for an axis."""

from __future__ import annotations

import math
from typing import Any

from heron_common.terminal.figures import human_bytes

Number = float | int | None


def percent(value: Number) -> str:
    """Return a share as per cent."""
    return "–" if value is None else f"{value:.2%}"


def decimal(value: Number) -> str:
    """Return a number with four figures."""
    return "–" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def count(value: Number) -> str:
    """Return a whole number."""
    return "–" if value is None else f"{value:,.0f}"


def size(value: Number) -> str:
    """Return bytes in the unit that fits, three figures, powers of a thousand."""
    return "–" if value is None else human_bytes(value)


def duration(value: Number) -> str:
    """Return seconds as seconds, minutes or hours."""
    if value is None:
        return "–"
    if value < 100:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` round values that enclose the range: steps of 1, 2 or 5 times a power of ten, at least two values."""
    if not high > low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = power * factor
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first + 1 <= most:
            break
    return [index * step for index in range(first, last + 1)]


def round_ticks(last: int, most: int) -> list[int]:
    """Return rounds to name under an axis from 1 to `last`: whole numbers, the first among them."""
    if last <= 2:
        return list(range(1, last + 1))
    step = max(1, int(ticks(0, last, most)[1]))
    return [1, *(value for value in range(step, last + 1, step) if value - 1 >= step / 2)]


def plain(value: Any) -> str:
    """Return a value of a configuration as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{key}={plain(item)}" for key, item in value.items()) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
