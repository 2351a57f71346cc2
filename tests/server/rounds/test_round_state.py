"""The round machine by scenarios: when rounds open, close, are abandoned, and who takes part."""

from __future__ import annotations

import math
from typing import Any

import pytest

from heron_common.ids import RoundReference
from heron_server.rounds.state import (
    AbandonRound,
    CloseRound,
    DropMember,
    FinishRun,
    MemberStatus,
    OpenRound,
    Phase,
    RoundMachine,
    RoundRules,
    WithoutQuorum,
    wanted_updates,
)


def machine(first: tuple[int, int] = (0, 0), **rules: Any) -> RoundMachine:
    defaults: dict[str, Any] = {
        "num_clients": 3,
        "min_updates": 2,
        "num_rounds": 2,
        "round_deadline_seconds": 100.0,
        "liveness_seconds": 1000.0,
        "cohort_wait_seconds": 10.0,
    }
    return RoundMachine(RoundRules(**{**defaults, **rules}), first[0], {first[0]: first[1] - 1} if first[1] else None)


def opened(m: RoundMachine, *names: str, now: float = 0.0) -> RoundMachine:
    """Let these clients appear; a round must have opened with exactly them."""
    for name in names:
        m.seen(name, now)
    assert m.phase is Phase.TRAINING and tuple(m.cohort) == tuple(sorted(names))
    return m


def test_a_round_opens_at_once_with_all_clients_in_sorted_order() -> None:
    m = machine()
    assert m.seen("c", 0.0) == []
    assert m.seen("a", 0.0) == []
    assert m.seen("b", 0.0) == [OpenRound(RoundReference(0, 0), ("a", "b", "c"))]
    assert m.phase is Phase.TRAINING


def test_the_first_round_waits_for_the_cohort_from_the_quorum_on() -> None:
    m = machine()
    m.seen("a", 0.0)
    m.tick(50.0)
    m.seen("b", 50.0)
    assert m.tick(59.9) == []
    assert m.tick(60.0) == [OpenRound(RoundReference(0, 0), ("a", "b"))]


def test_the_wait_starts_anew_when_the_quorum_is_lost() -> None:
    m = machine()
    m.seen("a", 0.0)
    m.seen("b", 0.0)
    m.departed("b", 5.0, "left")
    m.seen("b", 8.0)
    assert m.tick(12.0) == []
    assert m.tick(18.0) == [OpenRound(RoundReference(0, 0), ("a", "b"))]


def test_only_the_first_round_of_a_process_waits_for_the_cohort() -> None:
    m = opened(machine(), "a", "b", "c")
    for name in ("a", "b"):
        m.submitted(name, 1.0)
    m.departed("c", 1.0, "left")
    assert m.phase is Phase.CLOSING
    assert m.closed(2.0) == [OpenRound(RoundReference(1, 0), ("a", "b"))]


def test_a_round_does_not_open_below_the_quorum_however_long_it_waits() -> None:
    m = machine()
    m.seen("a", 0.0)
    for now in (10.0, 100.0, 999.0):
        assert m.tick(now) == []
    assert m.phase is Phase.WAITING


def test_a_round_closes_when_all_members_submitted() -> None:
    m = opened(machine(), "a", "b", "c")
    assert m.submitted("c", 1.0) == []
    assert m.submitted("a", 2.0) == []
    assert m.submitted("b", 3.0) == [CloseRound(RoundReference(0, 0), ("a", "b", "c"))]
    assert m.phase is Phase.CLOSING


def test_the_quorum_alone_does_not_close_a_round_while_others_are_at_work() -> None:
    m = opened(machine(), "a", "b", "c")
    m.submitted("a", 1.0)
    assert m.submitted("b", 1.0) == []
    assert m.tick(99.9) == []


def test_the_deadline_closes_a_round_with_quorum_and_drops_stragglers() -> None:
    m = opened(machine(), "a", "b", "c", now=5.0)
    m.submitted("a", 6.0)
    m.submitted("b", 6.0)
    drop, close = m.tick(105.0)
    assert isinstance(drop, DropMember) and drop.client_id == "c"
    assert close == CloseRound(RoundReference(0, 0), ("a", "b"))
    assert m.members(MemberStatus.DROPPED) == ("c",)


def test_the_deadline_without_quorum_abandons_and_repeats_the_round_as_a_new_attempt() -> None:
    m = opened(machine(), "a", "b", "c")
    m.submitted("a", 1.0)
    (effect,) = m.tick(100.0)
    assert isinstance(effect, AbandonRound) and effect.round == RoundReference(0, 0)
    assert m.phase is Phase.CLOSING
    assert m.closed(101.0) == [OpenRound(RoundReference(0, 1), ("a", "b", "c"))]


def test_a_quorum_out_of_reach_abandons_at_once() -> None:
    m = opened(machine(), "a", "b", "c")
    m.submitted("a", 1.0)
    assert m.departed("b", 2.0, "left") == [DropMember("b", "left")]
    drop, abandon = m.departed("c", 3.0, "left")
    assert drop == DropMember("c", "left") and isinstance(abandon, AbandonRound)


def test_a_member_may_be_excluded_without_departing() -> None:
    m = opened(machine(), "a", "b", "c")
    assert m.drop("c", 1.0, "misbehaved") == [DropMember("c", "misbehaved")]
    assert m.drop("c", 1.0, "misbehaved") == []
    assert m.live == ("a", "b", "c")
    m.submitted("a", 2.0)
    assert m.submitted("b", 2.0) == [CloseRound(RoundReference(0, 0), ("a", "b"))]
    assert m.closed(3.0) == [OpenRound(RoundReference(1, 0), ("a", "b", "c"))]


def test_a_silent_client_is_dropped_after_the_liveness_window_and_not_before() -> None:
    m = opened(machine(liveness_seconds=20.0), "a", "b", "c")
    m.seen("a", 15.0)
    m.seen("b", 15.0)
    assert m.tick(20.0) == []
    assert m.tick(20.1) == [DropMember("c", "went silent")]
    assert m.live == ("a", "b")


def test_any_message_is_a_sign_of_life() -> None:
    m = opened(machine(liveness_seconds=20.0, round_deadline_seconds=1e6), "a", "b", "c")
    for step in range(1, 10):
        for name in ("a", "b", "c"):
            assert m.seen(name, step * 19.0) == []
    assert m.members(MemberStatus.TRAINING) == ("a", "b", "c")


def test_a_silent_client_that_speaks_again_is_live_but_sits_the_attempt_out() -> None:
    m = opened(machine(liveness_seconds=20.0), "a", "b", "c")
    for name in ("a", "b"):
        m.seen(name, 15.0)
    m.tick(21.0)
    assert m.seen("c", 22.0) == []
    assert m.live == ("a", "b", "c") and m.cohort["c"] is MemberStatus.DROPPED
    m.submitted("a", 23.0)
    m.submitted("b", 23.0)
    assert m.closed(24.0) == [OpenRound(RoundReference(1, 0), ("a", "b", "c"))]


def test_a_late_joiner_waits_for_the_next_round() -> None:
    m = opened(machine(), "a", "b", "c")
    assert m.seen("d", 1.0) == []
    assert "d" not in m.cohort
    for name in ("a", "b", "c"):
        m.submitted(name, 2.0)
    assert m.closed(3.0) == [OpenRound(RoundReference(1, 0), ("a", "b", "c", "d"))]


def test_leaving_after_submitting_keeps_the_submission() -> None:
    m = opened(machine(), "a", "b", "c")
    m.submitted("a", 1.0)
    assert m.departed("a", 2.0, "left") == []
    assert m.cohort["a"] is MemberStatus.SUBMITTED
    m.submitted("b", 3.0)
    assert m.submitted("c", 3.0) == [CloseRound(RoundReference(0, 0), ("a", "b", "c"))]


def test_nothing_opens_while_a_round_is_being_closed() -> None:
    m = opened(machine(), "a", "b", "c")
    for name in ("a", "b", "c"):
        m.submitted(name, 1.0)
    assert m.seen("d", 2.0) == [] and m.tick(500.0) == []
    assert m.phase is Phase.CLOSING


def test_the_run_finishes_after_its_rounds_and_says_so_once() -> None:
    m = opened(machine(num_rounds=1), "a", "b", "c")
    for name in ("a", "b", "c"):
        m.submitted(name, 1.0)
    assert m.closed(2.0) == [FinishRun()]
    assert m.phase is Phase.FINISHED
    assert m.seen("d", 3.0) == [] and m.tick(4.0) == []


def test_an_abandoned_last_round_does_not_finish_the_run() -> None:
    m = opened(machine(num_rounds=1), "a", "b", "c")
    m.tick(100.0)
    assert m.closed(100.0) == [OpenRound(RoundReference(0, 1), ("a", "b", "c"))]


def test_a_resumed_run_begins_with_the_attempt_it_is_given() -> None:
    m = machine(first=(1, 4))
    for name in ("a", "b"):
        m.seen(name, 0.0)
    assert m.seen("c", 0.0) == [OpenRound(RoundReference(1, 4), ("a", "b", "c"))]


def test_a_run_that_had_begun_goes_on_with_those_who_were_there_and_waits_for_nobody_else() -> None:
    m = machine((1, 1))
    m.expect("a", 5.0)
    m.expect("b", 5.0)
    assert m.tick(5.0) == [OpenRound(RoundReference(1, 1), ("a", "b"))]


def test_a_run_that_had_not_begun_waits_for_the_cohort_although_some_were_there() -> None:
    m = machine()
    m.expect("a", 5.0)
    m.expect("b", 5.0)
    assert m.tick(5.0) == []
    assert m.tick(15.0) == [OpenRound(RoundReference(0, 0), ("a", "b"))]


def test_a_resumed_run_whose_rounds_are_done_finishes_without_clients() -> None:
    assert machine(first=(2, 0)).tick(0.0) == [FinishRun()]


@pytest.mark.parametrize("count", [5, 600])
def test_any_number_of_clients_may_go_silent_at_once(count: int) -> None:
    m = machine(num_clients=count, min_updates=count // 2, liveness_seconds=20.0)
    names = [f"c{i:04d}" for i in range(count)]
    for name in names:
        m.seen(name, 0.0)
    effects = m.tick(21.0)
    dropped = [effect.client_id for effect in effects if isinstance(effect, DropMember)]
    assert dropped == names[: len(dropped)] and len(dropped) > count - count // 2, "at least until the quorum is out of reach"
    assert [isinstance(effect, AbandonRound) for effect in effects] == [False] * len(dropped) + [True]
    assert m.live == ()


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.3, 1.5, 2.0, 3.0])
def test_over_selection_draws_more_than_it_wants_and_wants_what_was_asked_for(factor: float) -> None:
    for wanted in range(1, 200):
        assert wanted_updates(math.ceil(wanted * factor - 1e-9), factor) == wanted


def test_a_round_that_drew_more_ends_with_the_fastest() -> None:
    names = [f"c{n:02d}" for n in range(13)]
    m = machine(num_clients=13, over_selection=1.3, min_updates=5)
    for name in names:
        m.seen(name, 0.0)
    assert len(m.cohort) == 13
    for name in names[3:12]:
        assert m.submitted(name, 1.0) == []
    effects = m.submitted(names[12], 2.0)
    assert effects == [*(DropMember(name, "others were faster") for name in names[:3]), CloseRound(m.round, tuple(names[3:]))]


def test_a_share_of_the_clients_is_drawn_with_a_reserve() -> None:
    m = machine(num_clients=10, participation=0.2, over_selection=1.5, min_updates=1)
    for n in range(10):
        m.seen(f"c{n}", 0.0)
    assert len(m.cohort) == 3


def test_with_a_reserve_a_deadline_still_ends_the_round_with_a_quorum() -> None:
    m = opened(machine(over_selection=1.5, min_updates=1), "a", "b", "c")
    m.submitted("a", 1.0)
    assert m.tick(100.0)[-1] == CloseRound(m.round, ("a",))


def test_a_run_that_is_to_end_opens_no_further_round_and_says_why() -> None:
    m = opened(machine(num_rounds=9), "a", "b", "c")
    for name in ("a", "b", "c"):
        m.submitted(name, 1.0)
    assert m.phase is Phase.CLOSING and m.end_reason == "all 9 rounds are done"
    m.ends_because = "it is good enough"
    assert m.closed(2.0) == [FinishRun()]
    assert m.phase is Phase.FINISHED and m.end_reason == "it is good enough" and m.seen("d", 3.0) == []


def test_a_round_without_a_quorum_is_skipped_if_that_is_the_policy() -> None:
    m = opened(machine(without_quorum=WithoutQuorum.SKIP), "a", "b", "c")
    assert isinstance(m.tick(100.0)[-1], AbandonRound)
    assert m.closed(101.0) == [OpenRound(RoundReference(1, 0), ("a", "b", "c"))]
