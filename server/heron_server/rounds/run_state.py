"""The state of a run: clients, round machine, attempts; carries out what the machine decides. Not thread-safe: its owner alone has it."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from heron_common.data.columns import shortened, with_names
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.process.clock import Clock
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.terminal.log_setup import TOLD
from heron_server.metrics import ServerMetrics
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.beginning import PreparedInputs, begin_attempt
from heron_server.rounds.clients import ClientRecord, ClientRegistry
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.jobs import AbandonJob, CloseJob
from heron_server.rounds.orphaned_streams import OrphanedStreams
from heron_server.rounds.outbox import Outbox
from heron_server.rounds.snapshot import RunSnapshot
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
    WithoutQuorum,
)
from heron_server.rounds.visits import Visits
from heron_server.rounds.waiting import WaitingNote, waiting_sentence
from heron_server.storage.recorded import RecordedAttempt


class RunState:
    """What the owner's verbs read and change. Whatever is slow, or others see, goes into `outbox`."""

    def __init__(
        self,
        *,
        facts: RunFacts,
        machine: RoundMachine,
        registry: ClientRegistry,
        outbox: Outbox,
        metrics: ServerMetrics,
        clock: Clock,
        recorded: Iterable[RecordedAttempt] = (),
        present: Mapping[str, str] | None = None,
        keep_columns: Callable[[tuple[str, ...]], None] = lambda _: None,
    ) -> None:
        """`recorded` are the attempts to go on with, in order, before new ones open; `present` the clients (with digests of their keys) that were there.

        `keep_columns` is told what the run learnt, where others look for it than the ledger's readers.
        """
        self.facts, self.machine, self.registry = facts, machine, registry
        self.visits = Visits(clock, machine.rules.liveness_seconds)
        self.outbox, self.metrics, self.clock = outbox, metrics, clock
        self._keep_columns = keep_columns
        self.attempt: Attempt | None = None
        self.previous: Attempt | None = None
        self.closing: CloseJob | AbandonJob | None = None
        self.draining = self.has_moved = False
        """The latter: something happened that others may wait for, since the owner last looked."""
        self.prepared: PreparedInputs | None = None
        """What the open round started from, or else the next one will."""
        self.recorded = deque(recorded)
        self.orphaned_streams = OrphanedStreams(clock)
        self.bytes_counted: deque[tuple[ClientRecord, str, str, int]] = deque()
        """Client, direction, kind and size, noted without a lock and added up later."""
        records = registry.records()
        self._bytes = Counter(up=sum(sum(r.bytes_up.values()) for r in records), down=sum(sum(r.bytes_down.values()) for r in records))
        self._unsettled: list[Attempt] = []
        """Attempts that are over, but that no checkpoint covers yet because the disk refused."""
        self._waiting = WaitingNote()
        machine.may_open = False
        registry.warn = outbox.warn
        for name, identity in (present or {}).items():
            # A run that was killed goes on with the clients that it had, before each of them has found its way back.
            registry.expect(name, identity)
            registry.by_name[name].heard_at = clock.now()
            machine.expect(name, clock.now())

    # Questions.

    @property
    def start_is_saved(self) -> bool:
        """Whether a checkpoint holds what the open round starts from; a checkpoint inside a round is worth nothing without one to go back to."""
        return not self._unsettled

    def open_attempt(self) -> Attempt:
        """Return the attempt that the trainer is at work on."""
        if self.attempt is None:
            raise RuntimeError("the trainer reports on an attempt that is over")
        return self.attempt

    def status(self, record: ClientRecord) -> MemberStatus | None:
        """Return a client's place in the open round, or None if it has none."""
        return self.machine.cohort.get(record.name)

    def refuse_if_draining(self) -> None:
        """Raise RefusedError DRAINING while the server shuts down."""
        if self.draining:
            raise RefusedError(ErrorCode.DRAINING, "this server is shutting down: try again when it is back", 2.0)

    def waiting_for(self) -> str:
        """Say whom a round waits for that has not opened."""
        rules = self.machine.rules
        return waiting_sentence(live=self.registry.num_live, needed=rules.clients_needed, expected=rules.num_clients)

    def snapshot(self) -> RunSnapshot:
        """Return what a console shows."""
        self.add_up_bytes()
        machine = self.machine
        return RunSnapshot(
            round_index=machine.round.round_index,
            num_rounds=machine.rules.num_rounds,
            phase=machine.phase,
            state=self.waiting_for() if machine.phase is Phase.WAITING else machine.phase.value,
            live_clients=self.registry.num_live,
            cohort_size=len(machine.cohort),
            bytes_up=self._bytes["up"],
            bytes_down=self._bytes["down"],
        )

    # Time and clients.

    def tick(self) -> None:
        """Let time pass."""
        self.add_up_bytes()
        if not self.draining:
            self.advance(self.machine.tick)
            self._say_if_waiting()
        num_live = self.registry.num_live
        self.outbox.then(lambda: self.metrics.connected_clients.set(num_live))

    def advance(self, event: Callable[[float], list[Effect]]) -> None:
        """Tell the machine of an event, after everything that was heard before it, and carry out what it decides."""
        for record in self.registry.live_records():
            self.machine.heard(record.name, record.heard_at)
        self.apply(event(self.clock.now()))
        for record in self.registry.live_records():
            if not self.machine.is_live(record.name):
                self.depart(record, forget_session=False)

    def learn_columns(self, name: str, columns: tuple[str, ...]) -> None:
        """Take a client's names of columns for the run's, if it has none and they fit: in the ledger before anybody hears of it."""
        data = with_names(self.facts.data, columns, of_client=True)
        if data is self.facts.data:
            return
        self.facts = dataclasses.replace(self.facts, data=data)
        self.outbox.ledger.columns_learnt(columns)
        self.outbox.then(lambda: self._keep_columns(columns))
        self.outbox.info("the run takes the names of its columns from a client", client=name, columns=shortened(columns))

    def heard(self, record: ClientRecord) -> None:
        """A client sent something; one that had gone silent is there again."""
        record.heard_at = self.clock.now()
        if not record.live:
            self.registry.revive(record)
            self.outbox.ledger.joined(record.name, record.identity_sha256)
            self.advance(lambda now: self.machine.seen(record.name, now))

    def depart(self, record: ClientRecord, forget_session: bool) -> None:
        """A client left or went silent; a silent one keeps its session."""
        self.has_moved = True
        self.registry.depart(record.name, forget_session)
        self.outbox.ledger.departed(record.name)

    def orphan_stream(self, record: ClientRecord, reason: RefusedError | None = None) -> None:
        """What a client's open stream belongs to is over, its round unless another reason is given; the client may open another."""
        if record.stream is not None:
            record.stream.over = reason or RefusedError(
                ErrorCode.ROUND_OVER, "the round of this stream is not open on this server any more: ask for the next assignment"
            )
            if record.stream.cancel is not None:
                self.orphaned_streams.add(record.stream.cancel)
        record.stream = None

    def add_up_bytes(self) -> None:
        """Add what was noted to the tallies of clients and to the metric."""
        totals: Counter[tuple[str, str]] = Counter()
        for _ in range(len(self.bytes_counted)):
            record, direction, kind, size = self.bytes_counted.popleft()
            (record.bytes_up if direction == "up" else record.bytes_down)[kind] += size
            totals[direction, kind] += size
            self._bytes[direction] += size
        if totals:

            def count() -> None:
                for (direction, kind), size in totals.items():
                    self.metrics.bytes.labels(direction=direction, kind=kind).inc(size)

            self.outbox.then(count)

    # Rounds.

    def start(self, prepared: PreparedInputs) -> None:
        """Give what the open round, or else the next one, starts from; rounds may open from now on."""
        self._prepare(prepared)
        self.machine.may_open = not self.draining
        self.tick()

    def drain(self) -> None:
        """Open nothing more."""
        self.draining = True
        self.machine.may_open = False
        self.outbox.then(lambda: self.metrics.phase("draining"))

    def close_attempt(self, prepared: PreparedInputs, covered: bool) -> None:
        """The round was closed or abandoned; `prepared` is what the next one starts from, `covered` says whether a checkpoint holds it."""
        abandoned = self.closing.reason if isinstance(self.closing, AbandonJob) else None
        if self.attempt is not None:
            for name in self.attempt.cohort:
                self.orphan_stream(self.registry.by_name[name])
            if abandoned is None:
                self._unsettled.append(self.attempt)
            else:
                self._settle(self.attempt, abandoned)
        if covered:
            for attempt in self._unsettled:
                self._settle(attempt, None)
            self._unsettled.clear()
        self.previous, self.attempt, self.closing = self.attempt, None, None
        self._prepare(prepared)
        self.machine.may_open = False
        self.advance(self.machine.closed)

    def _prepare(self, prepared: PreparedInputs) -> None:
        self.prepared = prepared
        self.machine.set_apart = frozenset(prepared.inputs.set_apart)
        self.machine.ends_because = prepared.inputs.ends_because

    def let_open(self) -> None:
        """The next round may open now."""
        self.machine.may_open = not self.draining
        if not self.draining:
            self.advance(self.machine.tick)

    def begin(self, reference: RoundReference, cohort: tuple[str, ...]) -> tuple[Attempt, str]:
        """Return a new attempt from the present inputs, and their digest."""
        if self.prepared is None:
            raise RuntimeError("no round was opened yet")
        return begin_attempt(self.facts, self.machine.rules.num_rounds, prepared=self.prepared, reference=reference, cohort=cohort)

    def show_round(self, reference: RoundReference, cohort_size: int) -> None:
        """Set the gauges of an attempt that begins or goes on."""
        metrics, phase = self.metrics, self.machine.phase.value

        def show() -> None:
            metrics.phase(phase)
            metrics.round.set(reference.round_index)
            metrics.cohort_size.set(cohort_size)

        self.outbox.then(show)

    def apply(self, effects: list[Effect]) -> None:
        """Carry out what the machine decided, in order."""
        for effect in effects:
            if isinstance(effect, OpenRound):
                self._open(effect)
            elif isinstance(effect, DropMember):
                self._drop(effect)
            elif isinstance(effect, CloseRound):
                self._close(effect)
            elif isinstance(effect, AbandonRound):
                self._abandon(effect)
            elif isinstance(effect, FinishRun):
                self._finish()
        if effects:
            self.has_moved = True
            self.show_round(self.machine.round, len(self.machine.cohort))

    def _finish(self) -> None:
        if self.machine.ends_because:
            self.outbox.info("the run ends early", reason=self.machine.ends_because)
        else:
            self.outbox.info("all rounds are done", rounds=self.machine.rules.num_rounds)

    def _open(self, effect: OpenRound) -> None:
        self.attempt, digest = self.begin(effect.round, effect.cohort)
        identities = {name: self.registry.by_name[name].identity_sha256 for name in effect.cohort}
        self.outbox.ledger.round_opened(effect.round, identities, digest)
        crash_point(CrashPoint.ROUND_OPENED)
        self.outbox.info("round opened", round_index=effect.round.round_index, attempt=effect.round.attempt, clients=len(effect.cohort))

    def _drop(self, effect: DropMember) -> None:
        self.outbox.warn("client dropped from the round", client=effect.client_id, reason=effect.reason)
        self.outbox.then(lambda: self.metrics.dropped_clients.labels(reason=effect.reason.replace(" ", "_")).inc())
        self.orphan_stream(self.registry.by_name[effect.client_id])
        if self.attempt is not None:
            self.attempt.ended(effect.client_id)
            self.outbox.ledger.member_dropped(self.attempt.assignment.round, effect.client_id, effect.reason)

    def _close(self, effect: CloseRound) -> None:
        if self.attempt is None:
            raise RuntimeError("a round cannot close that is not open")
        for name in self.attempt.cohort:
            self.attempt.ended(name)
        for name in effect.submitted:
            self.registry.by_name[name].rounds_completed += 1
        self.outbox.ledger.round_closing(effect.round, effect.submitted)
        crash_point(CrashPoint.ROUND_CLOSING)
        self.closing = CloseJob(
            effect.round,
            self.attempt.assignment.plan,
            updates=tuple(self.attempt.updates[name] for name in effect.submitted),
            rows=tuple(self.attempt.rows_of(name) for name in effect.submitted),
            cohort=self.attempt.cohort,
            opened_at=self.machine.opened_at,
            start=self.attempt.start,
            scales=self.attempt.assignment.direction_scales,
        )

    def _abandon(self, effect: AbandonRound) -> None:
        skips = self.machine.rules.without_quorum is WithoutQuorum.SKIP
        self.outbox.warn(
            "round skipped without an update" if skips else "attempt abandoned, the round will be repeated",
            round_index=effect.round.round_index,
            reason=effect.reason,
        )
        self.outbox.then(lambda: self.metrics.rounds_abandoned.inc())
        self.outbox.ledger.round_abandoned(effect.round, effect.reason)
        crash_point(CrashPoint.ROUND_ABANDONED)
        self.closing = AbandonJob(effect.round, effect.reason, skips=skips, num_members=len(self.machine.cohort))

    def _settle(self, attempt: Attempt, abandoned: str | None) -> None:
        self.outbox.ledger.settled(attempt.assignment.round, abandoned)
        self.outbox.delete(attempt.entries())

    def _say_if_waiting(self) -> None:
        waits = self.machine.phase is Phase.WAITING and self.machine.may_open
        if self._waiting.is_due(waits, self.clock.now()):
            rules = self.machine.rules
            counts = {"live": self.registry.num_live, "needed": rules.clients_needed, "expected": rules.num_clients}
            self.outbox.info("waiting for clients", **counts, **{TOLD: self.waiting_for()})
