"""When a client without work asks again: soon where few do, and never so soon that all of them together storm the server."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

ASKS_PER_SECOND = 100.0
"""What all clients without work together may ask; an ask costs the server about half a millisecond."""

JITTER = 0.25
"""Clients that were told the same moment come apart by up to this share of their wait."""


@dataclass(frozen=True)
class Pace:
    """How soon a client without work asks again at the earliest.

    Attributes:
        idle_seconds: while it is not clear when a round opens, or one is open that the client has no part in.
        closing_seconds: while a round is about to open: averaging takes little time, and every client waits for it.
        hold_seconds: how long the answer itself waits for work, and an upload that comes too early for its turn. A call that is held keeps
            its thread, so a pool of threads must not hold any.

    """

    idle_seconds: float = 1.0
    closing_seconds: float = 0.1
    hold_seconds: float = 0.0


class AskSchedule:
    """Gives each client that has to wait a moment of its own, at most ASKS_PER_SECOND of them, so that the next asks of all stay below that rate."""

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()
        self._next = 0.0

    def wait_seconds(self, now: float, at_least: float) -> float:
        """Return how long to wait from `now` on."""
        if at_least <= 0.0:
            return 0.0
        self._next = max(self._next + 1.0 / ASKS_PER_SECOND, now)
        queued = self._next - now
        return max(at_least, queued) * self._random.uniform(1.0, 1.0 + JITTER)
