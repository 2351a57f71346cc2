"""Poll with a deadline; tests never sleep for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(probe: Callable[[], T], deadline_seconds: float = 30.0, what: str = "the condition") -> T:
    """Return the first truthy result of `probe`; fail after the deadline."""
    end = time.monotonic() + deadline_seconds
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {deadline_seconds:g} s; last result: {result!r}")
        time.sleep(0.02)
