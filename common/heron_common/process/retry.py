"""When to try again: exponential backoff with full jitter, as a pure sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class BackoffPolicy:
    """Full-jitter exponential backoff: wait uniformly in [floor, min(cap, initial * factor^n)]."""

    initial_seconds: float = 0.5
    """Half a second: a server restart on the same host is often that quick."""
    factor: float = 2.0
    cap_seconds: float = 30.0
    """Thirty seconds: a fleet of a hundred then knocks about seven times a second at most."""
    floor_seconds: float = 0.1

    def delays(self, random: Random) -> Iterator[float]:
        """Yield an endless sequence of delays in seconds, drawn from `random`."""
        ceiling = min(self.cap_seconds, self.initial_seconds)
        while True:
            yield random.uniform(min(self.floor_seconds, ceiling), ceiling)
            ceiling = min(self.cap_seconds, ceiling * self.factor)
