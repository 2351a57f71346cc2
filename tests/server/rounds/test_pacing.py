"""Clients without work ask again soon where they are few, and never storm the server together."""

from __future__ import annotations

import heapq
from random import Random

import pytest

from heron_server.rounds.pacing import ASKS_PER_SECOND, JITTER, ask_again_seconds


def asks_of(num_clients: int, seconds: float, at_least: float) -> list[float]:
    """Return when clients that all begin at once and do as they are told ask, over so many seconds."""
    random, due, asked = Random(1), [0.0] * num_clients, list[float]()
    while due[0] < seconds:
        now = heapq.heappop(due)
        asked.append(now)
        heapq.heappush(due, now + ask_again_seconds(at_least, num_clients, random))
    return asked


@pytest.mark.parametrize("num_clients", [200, 1000, 5000])
@pytest.mark.parametrize("at_least", [0.1, 1.0])
def test_asks_of_many_clients_stay_below_the_rate(num_clients: int, at_least: float) -> None:
    seconds = 300.0
    asked = asks_of(num_clients, seconds, at_least)
    # After the first moment, in which all begin, no ten seconds have more than their share.
    in_tens = [sum(start <= at < start + 10 for at in asked) for start in range(10, int(seconds), 10)]
    assert max(in_tens) <= 1.5 * 10 * ASKS_PER_SECOND
    assert sum(in_tens) <= 1.1 * ASKS_PER_SECOND * seconds


def test_few_clients_wait_no_longer_than_the_pace_says() -> None:
    random = Random(1)
    assert all(0.1 <= ask_again_seconds(0.1, 4, random) <= 0.1 * (1 + JITTER) for _ in range(1000))


def test_clients_of_one_moment_come_apart() -> None:
    random = Random(1)
    assert len({ask_again_seconds(1.0, 50, random) for _ in range(50)}) == 50


def test_a_pace_that_does_not_wait_is_left_alone() -> None:
    assert ask_again_seconds(0.0, 1000, Random(1)) == 0.0
