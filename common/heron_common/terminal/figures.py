"""Numbers as people read them: the one place that gives a figure its unit, and never a power of ten where digits would do."""

from __future__ import annotations

import math

FRONT_WEIGHTS = "weights in the front"
"""What people read for `client_model_weights`: the one name for how large a client's model is."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def human_bytes(count: float) -> str:
    """Return bytes for people, in decimal units: 1234567 -> '1.23 MB'."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    # 999.5 and more would round up to 1000, which belongs to the next unit.
    while count >= 999.5 and power < len(units) - 1:
        count /= 1000
        power += 1
    return f"{count:.0f} {units[power]}" if power == 0 or count >= 999.5 else f"{count:.3g} {units[power]}"


def human_seconds(seconds: float) -> str:
    """Return a duration for people, to two units: 200 -> '3 min 20 s'."""
    if not math.isfinite(seconds):
        return f"{seconds}"
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds >= 0.01 or seconds == 0 else f"{1e3 * seconds:.2g} ms"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return _two_units(whole, _MINUTE, "min", 1, "s")
    # Nobody counts the seconds of hours.
    whole = round(seconds / _MINUTE) * _MINUTE
    return _two_units(whole, _HOUR, "h", _MINUTE, "min") if whole < _DAY else _two_units(whole, _DAY, "d", _HOUR, "h")


def human_share(share: float) -> str:
    """Return a share of 1 in percent: 0.9722 -> '97.2%'."""
    return f"{share:.1%}"


def human_number(value: float) -> str:
    """Return a number for people: counts with separators, others to four digits; 1048576.0 -> '1,048,576'."""
    if isinstance(value, bool) or not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 1000) or abs(value) >= 1e4:
        return f"{round(value):,}"
    return f"{value:.4g}"


def _two_units(whole: int, large: int, large_name: str, small: int, small_name: str) -> str:
    rest = whole % large // small
    return f"{whole // large} {large_name}" + (f" {rest} {small_name}" if rest else "")
