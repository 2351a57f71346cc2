"""When to say that a run waits for clients: soon after it began to, and then once in a while, however long it lasts."""

from __future__ import annotations

FIRST_SECONDS = 10.0
"""Clients that start with their server are there by then."""

AGAIN_SECONDS = 300.0
"""Often enough for somebody who looks into the log, rare enough for a weekend."""


class WaitingNote:
    """Remembers since when a run has been waiting."""

    def __init__(self) -> None:
        self._due_at: float | None = None

    def is_due(self, waits: bool, now: float) -> bool:
        """Whether to say now that the run waits."""
        if not waits:
            self._due_at = None
            return False
        if self._due_at is None:
            self._due_at = now + FIRST_SECONDS
        if now < self._due_at:
            return False
        self._due_at = now + AGAIN_SECONDS
        return True
