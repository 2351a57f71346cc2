"""Rounds that a client is sent away from, one after the other: it asks for the next one later and later."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from heron_common.process.retry import BackoffPolicy


class SittingOut:
    """How long to pause before asking for work again. A round that ends early is the normal course of things, so the first costs no time."""

    def __init__(self, random: Random, policy: BackoffPolicy | None = None) -> None:
        self._random = random
        self._policy = policy or BackoffPolicy()
        self._delays: Iterator[float] | None = None

    def took_part(self) -> None:
        """A round was taken part in to its end."""
        self._delays = None

    def sent_away(self, longest_seconds: float) -> float:
        """A round ended without this client; return how many seconds to pause, at most so many: the server must not take it for dead."""
        if self._delays is None:
            self._delays = self._policy.delays(self._random)
            return 0.0
        return min(next(self._delays), longest_seconds)
