"""When to say that a run waits for clients, and in which words: soon after it began to, and then ever more seldom, however long it lasts."""

from __future__ import annotations

FIRST_SECONDS = 5.0
"""Clients that start with their server are there by then."""

LONGEST_SECONDS = 300.0
"""Each wait is twice the one before, up to this: somebody who watches hears of it, and a weekend does not fill a log."""


def waiting_sentence(*, live: int, needed: int, expected: int) -> str:
    """Say whom a run waits for: `needed` of the `expected` clients make a round."""
    if live >= expected:
        return "waiting for the next round to open"
    return f"waiting for {expected - live} of {expected} clients (quorum {needed})"


class WaitingNote:
    """Remembers since when a run has been waiting."""

    def __init__(self) -> None:
        self._due_at: float | None = None
        self._wait = FIRST_SECONDS

    def is_due(self, waits: bool, now: float) -> bool:
        """Whether to say now that the run waits."""
        if not waits:
            self._due_at = None
            return False
        if self._due_at is None:
            self._wait = FIRST_SECONDS
            self._due_at = now + self._wait
        if now < self._due_at:
            return False
        self._wait = min(2 * self._wait, LONGEST_SECONDS)
        self._due_at = now + self._wait
        return True
