"""When a client without work asks again: soon where few do, and never so soon that all of them together storm the server."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

ASKS_PER_SECOND = 100.0
"""What all clients without work together ask at most, on average; an ask costs the server about half a millisecond."""

JITTER = 0.25
"""Clients that were told the same moment come apart by up to this share of the pace."""


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


def ask_again_seconds(at_least: float, num_clients: int, random: Random) -> float:
    """Return how long one of `num_clients` is to wait: what the pace says, or, where so many at that pace were too many, its share of ASKS_PER_SECOND.

    The share is drawn from half to one and a half of its mean, so that a crowd that asked at one moment does not do so again.
    """
    return max(at_least * random.uniform(1.0, 1.0 + JITTER), num_clients / ASKS_PER_SECOND * random.uniform(0.5, 1.5) if at_least else 0.0)
