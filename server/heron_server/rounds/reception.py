"""Control calls: join, what next, blobs, goodbye. Thread-safe; nothing here waits unless a pace that holds calls was asked for."""

from __future__ import annotations

import dataclasses
import logging
import mmap
import time
from dataclasses import dataclass

from heron_common.assignment import Assignment, Finished, Membership, NextStep, UploadLoss, Wait
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.timing import Timing
from heron_server.rounds.clients import ClientRecord
from heron_server.rounds.coordinator import Coordinator
from heron_server.rounds.state import MemberStatus, Phase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How soon a client without work asks again.

    Attributes:
        idle_seconds: while it is not clear when a round opens, or one is open that the client has no part in.
        closing_seconds: while a round is about to open: averaging takes little time, and every client waits for it.
        hold_seconds: how long the answer itself waits for work, and an upload that comes too early for its turn. A call that is held keeps
            its thread, so a pool of threads must not hold any.

    """

    idle_seconds: float = 1.0
    closing_seconds: float = 0.1
    hold_seconds: float = 0.0


class Reception:
    """Answers clients' control calls."""

    def __init__(self, coordinator: Coordinator, pace: Pace | None = None) -> None:
        self._run = coordinator
        self.pace = pace or Pace()

    def join(self, name: str, identity_key: str, num_examples: int, version: str, speaker: str = "") -> Membership:
        """Open a session for a client that proved to be `speaker`, or proved nothing; see `ClientRegistry.join` for refusals."""
        run = self._run
        with run.changed:
            run.refuse_if_draining()
            record = run.registry.join(name, identity_key, speaker)
            run.ledger.joined(name, record.identity_sha256)
            run.registry.forget_departed(but=run.attempt.cohort if run.attempt is not None else ())
            run.orphan_stream(record)
            record.num_examples, record.version = num_examples, version
            log.info("client joined", extra={"client": name, "examples": num_examples, "version": version})
            run.apply(run.machine.seen(name, run.clock.now()))
            return self._membership(record)

    def visit(self, speaker: str = "") -> Membership:
        """Open a session for a client that only checks its data or its device: no round waits for it or takes it in.

        It is told the plan of a round that trains, and what the clock says here, for it will see no assignment.
        """
        run = self._run
        with run.changed:
            run.refuse_if_draining()
            membership = self._membership(run.registry.visit(speaker))
            return dataclasses.replace(membership, plan=run.facts.algorithm.plan, server_time_seconds=time.time())

    def _membership(self, record: ClientRecord) -> Membership:
        facts, rules = self._run.facts, self._run.machine.rules
        heartbeat = Timing(rules.liveness_seconds).heartbeat_seconds
        return Membership(
            facts.run_id,
            record.session,
            facts.run_seed,
            facts.data,
            facts.model,
            facts.programs,
            heartbeat,
            rules.num_rounds,
            facts.base,
            facts.held_out,
            facts.evaluation_batches,
        )

    def client(self, session: str, speaker: str = "") -> ClientRecord:
        """Return the client of a session and count the message as a sign of life; refuses unknown sessions, and those that another speaker opened."""
        run = self._run
        with run.changed:
            visitor = run.registry.visitor(session)
            record = visitor or run.registry.of_session(session)
            run.registry.check_speaker(record, speaker)
            if visitor is not None:
                return visitor
            if not record.live:
                run.registry.revive(record)
                run.ledger.joined(record.name, record.identity_sha256)
            run.apply(run.machine.seen(record.name, run.clock.now()))
            return record

    def next_step(self, record: ClientRecord, training: RoundReference | None) -> NextStep:
        """Return what a client should do: its assignment, a wait, or that the run is finished. Waits first if the pace says so.

        Raises:
            RefusedError: ROUND_OVER if it is at work on a round that is over for it; DRAINING.

        """
        run = self._run
        with run.changed:
            if training is None and self.pace.hold_seconds:
                run.moved.wait_for(lambda: self._has_news(record), self.pace.hold_seconds)
            if run.machine.phase is Phase.FINISHED:
                return Finished(f"all {run.machine.rules.num_rounds} rounds are done")
            run.refuse_if_draining()
            assignment = self._assignment_of(record)
            if training is not None and (assignment is None or training != assignment.round):
                raise RefusedError(ErrorCode.ROUND_OVER, f"round {training.round_index} attempt {training.attempt} is over for this client")
            if assignment is not None:
                return assignment
            return Wait(self._wait_seconds(record), f"the run is {run.machine.phase.value}")

    def losses_for(self, record: ClientRecord, seen: int) -> tuple[UploadLoss, ...]:
        """Return the losses of this client's uploads after the first `seen`."""
        with self._run.changed:
            return record.losses_after(seen)

    def blob(self, record: ClientRecord, sha256: str) -> bytes | mmap.mmap:
        """Return a blob that this client's join or assignment named; refuses others with BLOB_UNKNOWN."""
        run = self._run
        with run.changed:
            named = set(run.facts.blob_kinds)
            for attempt in (run.attempt, run.previous):
                if attempt is not None and record.name in attempt.cohort:
                    assignment = attempt.assignment_for(record.name)
                    named |= {b.sha256 for b in (assignment.client_model, assignment.auxiliary_head, assignment.statistics) if b}
        data = run.blobs.get(sha256) if sha256 in named else None
        if data is None:
            raise RefusedError(
                ErrorCode.BLOB_UNKNOWN,
                f"blob {sha256[:12]!r} was not named in this client's join or assignment: ask for the next assignment",
            )
        return data

    def blob_kind(self, sha256: str) -> str:
        """Return what a digest names, for the byte count: what stays over the run by its kind, the weights of a round otherwise."""
        return self._run.facts.blob_kinds.get(sha256, "weights")

    def count(self, record: ClientRecord, direction: str, kind: str, size_bytes: int) -> None:
        """Add to a client's tally of bytes, "up" or "down", by kind."""
        with self._run.changed:
            tally = record.bytes_up if direction == "up" else record.bytes_down
            tally[kind] += size_bytes

    def leave(self, record: ClientRecord, reason: str, peak_memory_bytes: int) -> None:
        """A client says goodbye."""
        run = self._run
        with run.changed:
            if run.registry.visitor(record.session) is not None:
                run.registry.end_visit(record.session)
                return
            record.note_memory(peak_memory_bytes)
            run.depart(record, forget_session=True)
            log.info("client left", extra={"client": record.name, "reason": reason[:200]})
            run.apply(run.machine.departed(record.name, run.clock.now(), "left"))

    def wait_until_empty(self, timeout_seconds: float, expected_seconds: float | None = None) -> None:
        """Wait until every live client has left, so that each has heard that the run is finished; at most `timeout_seconds`.

        Those that this process only expects, because an earlier one had them, may have left already: for them alone it waits `expected_seconds`.
        """
        run = self._run
        first = timeout_seconds if expected_seconds is None else min(expected_seconds, timeout_seconds)
        with run.changed:
            if not run.changed.wait_for(lambda: run.registry.num_live == 0, first):
                run.changed.wait_for(lambda: not any(record.session for record in run.registry.live_records()), timeout_seconds - first)

    def _has_news(self, record: ClientRecord) -> bool:
        run = self._run
        return run.draining or run.machine.phase is Phase.FINISHED or self._assignment_of(record) is not None

    def _wait_seconds(self, record: ClientRecord) -> float:
        phase = self._run.machine.phase
        opens_soon = phase is Phase.CLOSING or (phase is Phase.TRAINING and self._run.status(record) is not None)
        return self.pace.closing_seconds if opens_soon else self.pace.idle_seconds

    def _assignment_of(self, record: ClientRecord) -> Assignment | None:
        run = self._run
        if run.attempt is None or run.machine.phase is not Phase.TRAINING or run.status(record) is not MemberStatus.TRAINING:
            return None
        return run.attempt.assignment_for(record.name)
