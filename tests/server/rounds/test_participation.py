"""Rounds that take in a share of the clients: how many, who, the same every time, and what the quorum makes of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heron_common.errors import ConfigurationError
from heron_common.ids import RoundReference
from heron_server.rounds.state import AbandonRound, MemberStatus, OpenRound, Phase, RoundMachine, RoundRules, cohort_size, draw_cohort
from tests.server.running_server import tiny_config

NAMES = tuple(f"client-{index:02d}" for index in range(50))


def machine(begun: dict[int, int] | None = None, **rules: Any) -> RoundMachine:
    defaults: dict[str, Any] = {
        "num_clients": 50,
        "min_updates": 5,
        "num_rounds": 100,
        "round_deadline_seconds": 100.0,
        "liveness_seconds": 1000.0,
        "cohort_wait_seconds": 10.0,
        "participation": 0.2,
        "run_seed": 7,
    }
    return RoundMachine(RoundRules(**{**defaults, **rules}), 0, begun)


def everybody(m: RoundMachine) -> tuple[str, ...]:
    """Let all clients appear and return the cohort of the round that opens with the last of them."""
    for name in NAMES[:-1]:
        assert m.seen(name, 0.0) == []
    (effect,) = m.seen(NAMES[-1], 0.0)
    assert isinstance(effect, OpenRound)
    return effect.cohort


def finish(m: RoundMachine) -> tuple[str, ...]:
    """Let the open round end well and return the next cohort."""
    for name in m.members(MemberStatus.TRAINING):
        m.submitted(name, 1.0)
    (effect,) = m.closed(2.0)
    assert isinstance(effect, OpenRound)
    return effect.cohort


@pytest.mark.parametrize(
    ("participation", "clients", "size"),
    [(1.0, 4, 4), (0.2, 50, 10), (0.1, 30, 3), (0.07, 100, 7), (0.5, 5, 3), (0.01, 10, 1), (0.34, 3, 2), (0.5, 0, 0)],
)
def test_the_share_is_rounded_up_in_decimal_not_in_binary(participation: float, clients: int, size: int) -> None:
    assert cohort_size(participation, clients) == size


@given(st.floats(0.001, 1.0), st.integers(1, 200), st.integers(0, 2**31 - 1), st.integers(0, 1000), st.integers(0, 5))
def test_a_draw_is_a_sorted_part_of_the_live_clients_of_the_right_size(
    participation: float, clients: int, seed: int, index: int, attempt: int
) -> None:
    live = tuple(f"client-{number:03d}" for number in range(clients))
    drawn = draw_cohort(live, participation, run_seed=seed, reference=RoundReference(index, attempt))
    assert drawn == tuple(sorted(set(drawn))) and set(drawn) <= set(live)
    assert len(drawn) == cohort_size(participation, clients)
    assert drawn == draw_cohort(live, participation, run_seed=seed, reference=RoundReference(index, attempt))


def test_a_round_opens_with_a_share_of_those_who_are_there() -> None:
    m = machine()
    cohort = everybody(m)
    assert len(cohort) == 10 and cohort == m.members(MemberStatus.TRAINING)
    assert m.live == NAMES


def test_the_draw_depends_on_seed_round_and_attempt_and_on_nothing_else() -> None:
    first = everybody(machine())
    assert first == everybody(machine())
    assert first != everybody(machine(run_seed=8))
    assert first != everybody(machine(begun={0: 0}))
    m = machine()
    assert everybody(m) != finish(m)


def test_every_client_gets_its_turn_and_about_equally_often() -> None:
    m = machine()
    turns = Counter(everybody(m))
    for _ in range(99):
        turns.update(finish(m))
    # Of 100 rounds of 10 of 50 each: 20 turns a client, with a standard deviation of 4.
    assert set(turns) == set(NAMES)
    assert min(turns.values()) >= 6 and max(turns.values()) <= 36


def test_all_take_part_unless_a_share_is_given() -> None:
    assert RoundRules(3, 2, num_rounds=1, round_deadline_seconds=1.0, liveness_seconds=1.0, cohort_wait_seconds=1.0).participation == 1.0
    assert everybody(machine(participation=1.0)) == NAMES


def test_a_round_waits_for_clients_until_its_share_of_them_makes_the_quorum() -> None:
    m = machine(cohort_wait_seconds=0.0)
    for name in NAMES[:20]:
        assert m.seen(name, 0.0) == []
    (effect,) = m.seen(NAMES[20], 0.0)
    assert isinstance(effect, OpenRound) and len(effect.cohort) == 5


def test_those_outside_the_cohort_neither_hold_a_round_up_nor_keep_it_alive() -> None:
    m = machine()
    cohort = everybody(m)
    outside = [name for name in NAMES if name not in cohort]
    assert m.departed(outside[0], 1.0, "left") == []
    for name in cohort[:4]:
        m.submitted(name, 2.0)
    effects = [effect for name in cohort[4:] for effect in m.departed(name, 3.0, "left")]
    assert isinstance(effects[-1], AbandonRound) and m.phase is Phase.CLOSING


def test_the_quorum_is_half_of_the_cohort_unless_given() -> None:
    assert tiny_config(clients=50, participation=0.2).min_updates == 5
    assert tiny_config(clients=50, participation=0.05).min_updates == 2
    assert tiny_config(clients=50).min_updates == 25
    assert tiny_config(clients=50, participation=0.2, min_updates=9).min_updates == 9


def test_a_quorum_beyond_the_cohort_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        ConfigurationError, match=r"--min-updates 11 exceeds the 10 that --participation 0\.2 takes in of --clients 50: no round"
    ):
        tiny_config(clients=50, participation=0.2, min_updates=11)


@pytest.mark.parametrize("share", ["0", "-0.1", "1.1", "nan", "most"])
def test_a_share_is_more_than_nothing_and_at_most_all(share: str) -> None:
    with pytest.raises(ConfigurationError, match="--participation"):
        tiny_config(participation=share)
