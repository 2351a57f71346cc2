"""A server that sends a client away round after round is asked ever more seldom."""

from __future__ import annotations

from random import Random

from heron_client.network.sitting_out import SittingOut
from heron_common.process.retry import BackoffPolicy

EXACT = BackoffPolicy(initial_seconds=0.5, factor=2.0, cap_seconds=30.0, floor_seconds=30.0)
"""Without jitter: floor and ceiling fall together."""


def test_the_first_round_costs_no_time_and_each_further_one_more() -> None:
    sitting_out = SittingOut(Random(0), EXACT)
    assert [sitting_out.sent_away(10.0) for _ in range(8)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_round_that_was_taken_part_in_begins_the_count_anew() -> None:
    sitting_out = SittingOut(Random(0), EXACT)
    for _ in range(4):
        sitting_out.sent_away(10.0)
    sitting_out.took_part()
    assert [sitting_out.sent_away(10.0) for _ in range(2)] == [0.0, 0.5]
