"""Backoff within its bounds, names that are safe in paths and logs, tokens that do not repeat, a clock that stands still."""

from __future__ import annotations

import itertools
import re
from random import Random

import pytest

from heron_common.errors import ConfigurationError
from heron_common.ids import RoundReference, checked_client_name, new_token
from heron_common.process.clock import ManualClock, MonotonicClock
from heron_common.process.retry import BackoffPolicy
from heron_common.version import PROTOCOL_VERSION, VERSION


class Extreme(Random):
    """A generator that always draws one end of the interval."""

    def __init__(self, highest: bool) -> None:
        super().__init__(0)
        self._highest = highest

    def uniform(self, a: float, b: float) -> float:
        return b if self._highest else a


def delays(policy: BackoffPolicy, random: Random, count: int) -> list[float]:
    return list(itertools.islice(policy.delays(random), count))


def test_the_longest_delays_grow_by_the_factor_up_to_the_cap() -> None:
    policy = BackoffPolicy(initial_seconds=0.5, factor=3.0, cap_seconds=10.0)
    assert delays(policy, Extreme(highest=True), 6) == [0.5, 1.5, 4.5, 10.0, 10.0, 10.0]


def test_the_shortest_delays_are_the_floor() -> None:
    assert delays(BackoffPolicy(), Extreme(highest=False), 5) == [BackoffPolicy().floor_seconds] * 5


def test_a_floor_above_the_first_ceiling_does_not_lift_it() -> None:
    policy = BackoffPolicy(initial_seconds=0.01, floor_seconds=0.1)
    assert delays(policy, Extreme(highest=True), 1) == delays(policy, Extreme(highest=False), 1) == [0.01]


def test_the_first_delay_respects_the_cap_too() -> None:
    assert max(delays(BackoffPolicy(initial_seconds=60.0, cap_seconds=30.0), Extreme(highest=True), 3)) == 30.0


def test_jitter_spreads_a_fleet_over_the_whole_interval() -> None:
    policy = BackoffPolicy()
    first = [delays(policy, Random(seed), 1)[0] for seed in range(200)]
    low, high = policy.floor_seconds, policy.initial_seconds
    assert low <= min(first) < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < max(first) <= high


def test_the_same_generator_gives_the_same_delays() -> None:
    assert delays(BackoffPolicy(), Random(3), 20) == delays(BackoffPolicy(), Random(3), 20)


def test_backoff_never_overflows() -> None:
    assert delays(BackoffPolicy(), Extreme(highest=True), 5000)[-1] == BackoffPolicy().cap_seconds


@pytest.mark.parametrize("name", ["a", "7", "pi-4.local_2", "A" * 100, "x..y"])
def test_a_usable_name_comes_back_unchanged(name: str) -> None:
    assert checked_client_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "A" * 101, ".hidden", "-flag", "_x", "..", "a/b", "a\\b", "a b", "a\n", "\na", "a\0", "né", "a=b", 'a"b', "٣"]
)
def test_a_name_that_is_unsafe_in_a_path_a_log_or_a_seed_is_refused_with_the_option(name: str) -> None:
    with pytest.raises(ConfigurationError, match="choose another --name"):
        checked_client_name(name)


def test_a_refused_name_is_not_repeated_at_length() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        checked_client_name("x" * 1_000_000)
    assert len(str(refusal.value)) < 400


def test_tokens_are_128_bits_of_hexadecimal_and_do_not_repeat() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)


def test_round_references_order_by_round_then_attempt() -> None:
    assert RoundReference(1, 9) < RoundReference(2, 0) < RoundReference(2, 1)


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(5.0)
    assert clock.now() == clock.now() == 5.0
    clock.advance(2.5)
    assert clock.now() == 7.5


def test_the_machines_clock_never_runs_backwards() -> None:
    clock = MonotonicClock()
    readings = [clock.now() for _ in range(100)]
    assert readings == sorted(readings)


def test_the_version_is_a_release_number_and_the_protocol_a_counter() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([abrc.]+\w+)?", VERSION)
    assert PROTOCOL_VERSION >= 1
