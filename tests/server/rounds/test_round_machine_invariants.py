"""The round machine under random events: rounds always end, references only grow, nobody counts twice."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from heron_common.ids import RoundReference
from heron_common.process.clock import ManualClock
from heron_server.rounds.state import (
    AbandonRound,
    CloseRound,
    DropMember,
    Effect,
    FinishRun,
    MemberStatus,
    OpenRound,
    Phase,
    RoundMachine,
    RoundRules,
)

NAMES = st.sampled_from("abcdef")
DEADLINE, LIVENESS, COHORT_WAIT = 50.0, 30.0, 10.0


class RoundLife(RuleBasedStateMachine):
    """Drives a machine as the owner does, and keeps its own books."""

    def __init__(self) -> None:
        super().__init__()
        rules = RoundRules(4, 2, num_rounds=3, round_deadline_seconds=DEADLINE, liveness_seconds=LIVENESS, cohort_wait_seconds=COHORT_WAIT)
        self.clock = ManualClock()
        self.machine = RoundMachine(rules)
        self.opened: list[RoundReference] = []
        self.outcome: dict[RoundReference, str] = {}
        self.cohort: tuple[str, ...] = ()
        self.submitted: set[str] = set()
        self.dropped: set[str] = set()
        self.last_seen: dict[str, float] = {}
        self.finished = 0

    @rule(name=NAMES)
    def message(self, name: str) -> None:
        self.last_seen[name] = self.clock.now()
        self.carry_out(self.machine.seen(name, self.clock.now()))

    @rule(name=NAMES)
    def leave(self, name: str) -> None:
        self.last_seen.pop(name, None)
        self.carry_out(self.machine.departed(name, self.clock.now(), "left"))

    @rule(name=NAMES)
    def exclude(self, name: str) -> None:
        self.carry_out(self.machine.drop(name, self.clock.now(), "misbehaved"))

    @precondition(lambda self: self.machine.members(MemberStatus.TRAINING) and self.machine.phase is Phase.TRAINING)
    @rule(data=st.data())
    def submit(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.machine.members(MemberStatus.TRAINING)))
        self.submitted.add(name)
        self.last_seen[name] = self.clock.now()
        self.carry_out(self.machine.submitted(name, self.clock.now()))

    @rule(seconds=st.sampled_from([0.5, 5.0, COHORT_WAIT, LIVENESS, LIVENESS + 1, DEADLINE]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.carry_out(self.machine.tick(self.clock.now()))

    @precondition(lambda self: self.machine.phase is Phase.CLOSING)
    @rule()
    def trainer_is_done(self) -> None:
        self.carry_out(self.machine.closed(self.clock.now()))

    @precondition(lambda self: self.machine.phase is Phase.TRAINING)
    @rule()
    def nobody_speaks_until_the_deadline(self) -> None:
        before = self.machine.round
        self.clock.advance(DEADLINE)
        self.carry_out(self.machine.tick(self.clock.now()))
        assert self.machine.phase is not Phase.TRAINING
        assert before in self.outcome

    def carry_out(self, effects: list[Effect]) -> None:
        self.forget_silent()
        for effect in effects:
            if isinstance(effect, OpenRound):
                assert not self.opened or effect.round > self.opened[-1], "references strictly increase"
                assert not self.opened or self.opened[-1] in self.outcome, "one round at a time"
                assert len(effect.cohort) >= self.machine.rules.min_updates
                assert effect.cohort == tuple(sorted(self.last_seen)) == self.machine.live
                self.opened.append(effect.round)
                self.cohort, self.submitted, self.dropped = effect.cohort, set(), set()
            elif isinstance(effect, DropMember):
                assert effect.client_id in self.cohort and effect.client_id not in self.dropped | self.submitted
                self.dropped.add(effect.client_id)
            elif isinstance(effect, CloseRound):
                assert effect.submitted == tuple(sorted(self.submitted))
                assert len(effect.submitted) >= self.machine.rules.min_updates
                self.end(effect.round, "closed")
            elif isinstance(effect, AbandonRound):
                assert len(self.submitted) < self.machine.rules.min_updates
                self.end(effect.round, "abandoned")
            elif isinstance(effect, FinishRun):
                self.finished += 1

    def end(self, reference: RoundReference, outcome: str) -> None:
        assert reference == self.opened[-1] and reference not in self.outcome
        self.outcome[reference] = outcome

    def forget_silent(self) -> None:
        now = self.clock.now()
        self.last_seen = {name: seen for name, seen in self.last_seen.items() if now - seen <= LIVENESS}

    @invariant()
    def books_agree(self) -> None:
        self.forget_silent()
        assert self.machine.live == tuple(sorted(self.last_seen))
        if self.machine.phase in (Phase.TRAINING, Phase.CLOSING):
            assert set(self.machine.members(MemberStatus.SUBMITTED)) == self.submitted
            assert set(self.machine.members(MemberStatus.DROPPED)) == self.dropped
            assert not self.submitted & self.dropped
            assert set(self.machine.cohort) == set(self.cohort)

    @invariant()
    def a_round_trains_only_while_its_quorum_is_in_reach_and_somebody_is_at_work(self) -> None:
        if self.machine.phase is Phase.TRAINING:
            at_work = set(self.cohort) - self.submitted - self.dropped
            assert at_work
            assert len(at_work) + len(self.submitted) >= self.machine.rules.min_updates
            assert self.clock.now() - self.machine.opened_at < DEADLINE

    @invariant()
    def rounds_are_closed_once_each_and_in_order(self) -> None:
        closed = [reference.round_index for reference, outcome in self.outcome.items() if outcome == "closed"]
        assert closed == list(range(len(closed)))
        assert len(closed) <= self.machine.rules.num_rounds

    @invariant()
    def the_run_finishes_exactly_when_all_rounds_are_closed(self) -> None:
        assert (self.machine.phase is Phase.FINISHED) == (self.finished == 1)
        if self.finished:
            assert sum(outcome == "closed" for outcome in self.outcome.values()) == self.machine.rules.num_rounds


RoundLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRoundLife = RoundLife.TestCase
