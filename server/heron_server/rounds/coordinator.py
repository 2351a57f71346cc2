"""The heart of a run: one lock around clients, round machine and attempt; carries out what the machine decides.

Three faces share it, each for one kind of caller: `Reception` for control calls, `Intake` for uploads and updates, `Worklist` for the trainer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping

from heron_common.clock import Clock
from heron_common.crash_points import CrashPoint, crash_point
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError, StorageError
from heron_common.ids import RoundReference
from heron_server.metrics import ServerMetrics
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.beginning import begin_attempt
from heron_server.rounds.clients import ClientRecord, ClientRegistry
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.jobs import AbandonJob, CloseJob, RoundInputs
from heron_server.rounds.orphaned_streams import OrphanedStreams
from heron_server.rounds.reopening import member_statuses, refill
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
from heron_server.rounds.waiting import WaitingNote
from heron_server.storage.blobs import BlobStore
from heron_server.storage.ledger import Ledger
from heron_server.storage.recorded import RecordedAttempt
from heron_server.storage.spool import Spool

log = logging.getLogger(__name__)


class Coordinator:
    """The shared state of a run. Hold `changed` around everything; it is re-entrant, and notified whenever something may be ready.

    `moved` has the same lock and is notified only when rounds open and end, for those who wait for nothing else.
    """

    def __init__(
        self,
        facts: RunFacts,
        machine: RoundMachine,
        registry: ClientRegistry,
        spool: Spool,
        blobs: BlobStore,
        metrics: ServerMetrics,
        clock: Clock,
        ledger: Ledger,
        recorded: tuple[RecordedAttempt, ...] = (),
        present: Mapping[str, str] | None = None,
    ) -> None:
        """`recorded` are the attempts to go on with, in order, before new ones open; `present` the clients (with digests of their keys) that were there."""
        self.facts = facts
        self.machine = machine
        self.registry = registry
        self.spool = spool
        self.blobs = blobs
        self.metrics = metrics
        self.clock = clock
        lock = threading.RLock()
        self.changed, self.moved = threading.Condition(lock), threading.Condition(lock)
        self.attempt: Attempt | None = None
        self.previous: Attempt | None = None
        self.closing: CloseJob | AbandonJob | None = None
        self.draining = False
        self._inputs: RoundInputs | None = None
        machine.may_open = False
        self.ledger = ledger
        self._recorded = deque(recorded)
        for name, identity in (present or {}).items():
            # A run that was killed goes on with the clients that it had, before each of them has found its way back.
            registry.expect(name, identity)
            machine.expect(name, clock.now())
        self._covered = 0
        self._unsettled: list[Attempt] = []
        """Attempts that are over, but that no checkpoint covers yet because the disk refused."""
        self._waiting = WaitingNote()
        self.orphaned_streams = OrphanedStreams(clock, self.changed)
        self.snapshot = self._snapshot()
        """For a console, whose lock whoever logs waits for: it must not wait for `changed`, which those who log may hold."""

    def reopen(self, inputs: RoundInputs, covered: int = 0) -> bool:
        """Go on with the first recorded attempt, which began from `inputs`, without its first `covered` uploads to train.

        Returns False if it cannot be gone on with: then it is undone, as are those after it, and its round will be repeated.

        Raises:
            StorageError: the ledger's disk refuses.

        """
        with self.changed:
            self._inputs, self._covered = inputs, covered
            return self._go_on()

    def start(self, inputs: RoundInputs) -> None:
        """Give what the open round, or else the next one, starts from; rounds may open from now on."""
        with self.changed:
            self._inputs = inputs
            self.metrics.planned_rounds.set(self.machine.rules.num_rounds)
            self.metrics.expected_clients.set(self.machine.rules.num_clients)
            self.metrics.spool_budget_bytes.set(self.spool.budget_bytes)
            self.machine.set_apart = frozenset(inputs.set_apart)
            self.machine.may_open = not self.draining
            self.tick()

    def tick(self) -> None:
        """Let time pass; call a few times a second."""
        with self.changed:
            if not self.draining:
                self.apply(self.machine.tick(self.clock.now()))
                self._say_if_waiting()
            self.orphaned_streams.cancel_stalled()
            self.metrics.connected_clients.set(self.registry.num_live)
            self.snapshot = self._snapshot()

    def _snapshot(self) -> RunSnapshot:
        records, machine = self.registry.records(), self.machine
        return RunSnapshot(
            round_index=machine.round.round_index,
            num_rounds=machine.rules.num_rounds,
            phase=machine.phase,
            live_clients=self.registry.num_live,
            cohort_size=len(machine.cohort),
            bytes_up=sum(sum(record.bytes_up.values()) for record in records),
            bytes_down=sum(sum(record.bytes_down.values()) for record in records),
        )

    def _say_if_waiting(self) -> None:
        waits = self.machine.phase is Phase.WAITING and self.machine.may_open
        if self._waiting.is_due(waits, self.clock.now()):
            rules = self.machine.rules
            log.info(
                "waiting for clients", extra={"live": self.registry.num_live, "needed": rules.clients_needed, "expected": rules.num_clients}
            )

    def drain(self) -> None:
        """Admit nothing more: a round that is closing is closed, an open one is left for --resume; returns at once."""
        with self.changed:
            self.draining = True
            self.machine.may_open = False
            self.metrics.phase("draining")
            self.snapshot = self._snapshot()
            self.changed.notify_all()
            self.moved.notify_all()

    def inputs_of_open_round(self) -> RoundInputs:
        """Return what the open round started from."""
        if self._inputs is None:
            raise RuntimeError("no round was opened yet")
        return self._inputs

    def next_round(self, inputs: RoundInputs, covered: bool) -> None:
        """The round was closed or abandoned; `inputs` are what the next one starts from, `covered` says whether a checkpoint holds them."""
        with self.changed:
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
            self.previous, self.attempt, self.closing, self._inputs = self.attempt, None, None, inputs
            self.machine.set_apart = frozenset(inputs.set_apart)
            self.machine.may_open = False
            self.apply(self.machine.closed(self.clock.now()))
            self._go_on()
            self.machine.may_open = not self.draining
            self.apply(self.machine.tick(self.clock.now()) if not self.draining else [])

    @property
    def start_is_saved(self) -> bool:
        """Whether a checkpoint holds what the open round starts from; a checkpoint inside a round is worth nothing without one to go back to."""
        return not self._unsettled

    def _settle(self, attempt: Attempt, abandoned: str | None) -> None:
        self.ledger.settled(attempt.assignment.round, abandoned)
        for entry in attempt.entries():
            self.spool.release(entry)

    def _go_on(self) -> bool:
        """Reopen the next recorded attempt; returns False if there is one and it cannot be."""
        recorded = self._recorded.popleft() if self._recorded else None
        succeeded = recorded is None or self._reopen(recorded)
        if recorded is not None and not succeeded:
            for later in (recorded, *self._recorded):
                self.ledger.settled(later.round, "it could not be gone on with after a restart")
                self.spool.discard(later.files())
            self._recorded.clear()
        self._covered = 0
        return succeeded

    def _reopen(self, recorded: RecordedAttempt) -> bool:
        reference, now = recorded.round, self.clock.now()
        attempt, digest = self._attempt_from(reference, tuple(recorded.cohort))
        reason = "its plan or its weights are not what they were" if digest != recorded.inputs_sha256 else ""
        if not reason:
            try:
                refill(attempt, recorded, self.spool, self._covered, now)
            except StorageError as exc:
                reason = str(exc)
        if reason:
            log.warning(
                "an open round cannot be gone on with and is repeated", extra={"round_index": reference.round_index, "reason": reason}
            )
            return False
        self.attempt = attempt
        self.ledger.gone_on_with(reference, self._covered)
        # Killed between a checkpoint inside the round and what it makes room for, the earlier process left payloads that nobody needs.
        left = recorded.files() - {entry.path.name for entry in attempt.entries()}
        if left:
            # First the ledger: a name that stood there without its file would one day be another payload's.
            self.ledger.sync()
            self.spool.discard(left)
        for name, identity in recorded.cohort.items():
            self.registry.know(name, identity)
        log.info(
            "going on inside a round",
            extra={
                "round_index": reference.round_index,
                "attempt": reference.attempt,
                "uploads": len(recorded.uploads),
                "to_train": sum(not upload.trained for upload in attempt.uploads.values()),
                "updates": len(recorded.updates),
            },
        )
        self.machine.reopen(reference, member_statuses(recorded), now)
        self.metrics.phase(self.machine.phase.value)
        self.metrics.round.set(reference.round_index)
        self.metrics.cohort_size.set(len(recorded.cohort))
        if recorded.submitted is not None:
            self.apply(self.machine.repeat_close(recorded.submitted))
        return True

    def orphan_stream(self, record: ClientRecord) -> None:
        """What a client's open stream belongs to is over; the client may open another."""
        if record.cancel_stream is not None:
            self.orphaned_streams.add(record.cancel_stream)
        record.cancel_stream, record.uploading = None, ""

    def depart(self, record: ClientRecord, forget_session: bool) -> None:
        """A client left or went silent; a silent one keeps its session."""
        self.registry.depart(record.name, forget_session)
        self.ledger.departed(record.name)

    def status(self, record: ClientRecord) -> MemberStatus | None:
        """Return a client's place in the open round, or None if it has none."""
        return self.machine.cohort.get(record.name)

    def refuse_if_draining(self) -> None:
        """Raise RefusedError DRAINING while the server shuts down."""
        if self.draining:
            raise RefusedError(ErrorCode.DRAINING, "this server is shutting down: try again when it is back", 2.0)

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
                log.info("all rounds are done", extra={"rounds": self.machine.rules.num_rounds})
        for record in self.registry.live_records():
            if not self.machine.is_live(record.name):
                self.depart(record, forget_session=False)
        if effects:
            self.snapshot = self._snapshot()
            self.metrics.phase(self.machine.phase.value)
            self.metrics.round.set(self.machine.round.round_index)
            self.moved.notify_all()
        self.changed.notify_all()

    def _open(self, effect: OpenRound) -> None:
        self.attempt, digest = self._attempt_from(effect.round, effect.cohort)
        self.ledger.round_opened(effect.round, {name: self.registry.by_name[name].identity_sha256 for name in effect.cohort}, digest)
        crash_point(CrashPoint.ROUND_OPENED)
        self.metrics.cohort_size.set(len(effect.cohort))
        log.info(
            "round opened", extra={"round_index": effect.round.round_index, "attempt": effect.round.attempt, "clients": len(effect.cohort)}
        )

    def _attempt_from(self, reference: RoundReference, cohort: tuple[str, ...]) -> tuple[Attempt, str]:
        return begin_attempt(self.facts, self.machine.rules.num_rounds, self.blobs, self.inputs_of_open_round(), reference, cohort)

    def _drop(self, effect: DropMember) -> None:
        log.warning("client dropped from the round", extra={"client": effect.client_id, "reason": effect.reason})
        self.metrics.dropped_clients.labels(reason=effect.reason.replace(" ", "_")).inc()
        self.orphan_stream(self.registry.by_name[effect.client_id])
        if self.attempt is not None:
            self.attempt.ended(effect.client_id)
            self.ledger.member_dropped(self.attempt.assignment.round, effect.client_id, effect.reason)

    def _close(self, effect: CloseRound) -> None:
        if self.attempt is None:
            raise RuntimeError("a round cannot close that is not open")
        for name in self.attempt.cohort:
            self.attempt.ended(name)
        for name in effect.submitted:
            self.registry.by_name[name].rounds_completed += 1
        self.ledger.round_closing(effect.round, effect.submitted)
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
        log.warning(
            "round skipped without an update" if skips else "attempt abandoned, the round will be repeated",
            extra={"round_index": effect.round.round_index, "reason": effect.reason},
        )
        self.metrics.rounds_abandoned.inc()
        self.ledger.round_abandoned(effect.round, effect.reason)
        crash_point(CrashPoint.ROUND_ABANDONED)
        self.closing = AbandonJob(effect.round, effect.reason, skips, len(self.machine.cohort))
