"""Control calls: join, what next, blobs, goodbye. Thread-safe; nothing here waits."""

from __future__ import annotations

import logging

from heron_common.assignment import Assignment, Finished, Membership, NextStep, UploadLoss, Wait
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_server.rounds.clients import ClientRecord
from heron_server.rounds.coordinator import Coordinator
from heron_server.rounds.state import MemberStatus, Phase

log = logging.getLogger(__name__)

IDLE_POLL_SECONDS = 1.0
"""How soon an idle client asks again while it is not clear when a round opens."""

CLOSING_POLL_SECONDS = 0.1
"""How soon it asks again while a round is about to open: averaging takes little time, and every client waits for it."""

HEARTBEATS_PER_LIVENESS = 3
"""Two heartbeats may be lost before a client counts as departed."""


class Reception:
    """Answers clients' control calls."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._run = coordinator

    def join(self, name: str, identity_key: str, num_examples: int, version: str) -> Membership:
        """Open a session for a client; see `ClientRegistry.join` for refusals."""
        run = self._run
        with run.changed:
            run.refuse_if_draining()
            record = run.registry.join(name, identity_key)
            run.orphan_stream(record)
            record.num_examples, record.version = num_examples, version
            log.info("client joined", extra={"client": name, "examples": num_examples, "version": version})
            run.apply(run.machine.seen(name, run.clock.now()))
            facts, rules = run.facts, run.machine.rules
            heartbeat = rules.liveness_seconds / HEARTBEATS_PER_LIVENESS
            return Membership(
                facts.run_id, record.session, facts.run_seed, facts.data, facts.model, facts.programs, heartbeat, rules.num_rounds
            )

    def client(self, session: str) -> ClientRecord:
        """Return the client of a session and count the message as a sign of life; refuses unknown sessions."""
        run = self._run
        with run.changed:
            record = run.registry.of_session(session)
            record.live = True
            run.apply(run.machine.seen(record.name, run.clock.now()))
            return record

    def next_step(self, record: ClientRecord, training: RoundReference | None) -> NextStep:
        """Return what a client should do: its assignment, a wait, or that the run is finished.

        Raises:
            RefusedError: ROUND_OVER if it is at work on a round that is over for it; DRAINING.

        """
        run = self._run
        with run.changed:
            if run.machine.phase is Phase.FINISHED:
                return Finished(f"all {run.machine.rules.num_rounds} rounds are done")
            run.refuse_if_draining()
            assignment = self._assignment_of(record)
            if training is not None and (assignment is None or training != assignment.round):
                raise RefusedError(ErrorCode.ROUND_OVER, f"round {training.round_index} attempt {training.attempt} is over for this client")
            if assignment is not None:
                return assignment
            seconds = CLOSING_POLL_SECONDS if run.machine.phase is not Phase.WAITING else IDLE_POLL_SECONDS
            return Wait(seconds, f"the run is {run.machine.phase.value}")

    def losses_for(self, record: ClientRecord, seen: int) -> tuple[UploadLoss, ...]:
        """Return the losses of this client's uploads after the first `seen`."""
        with self._run.changed:
            return record.losses_after(seen)

    def blob(self, record: ClientRecord, sha256: str) -> bytes:
        """Return a blob that this client's join or assignment named; refuses others with BLOB_UNKNOWN."""
        run = self._run
        with run.changed:
            named = {program.blob.sha256 for program in run.facts.programs}
            for attempt in (run.attempt, run.previous):
                if attempt is not None and record.name in attempt.cohort:
                    named |= {b.sha256 for b in (attempt.assignment.client_model, attempt.assignment.auxiliary_head) if b}
        data = run.blobs.get(sha256) if sha256 in named else None
        if data is None:
            raise RefusedError(
                ErrorCode.BLOB_UNKNOWN,
                f"blob {sha256[:12]!r} was not named in this client's join or assignment: ask for the next assignment",
            )
        return data

    def is_program(self, sha256: str) -> bool:
        """Whether a digest names a program rather than weights."""
        return any(program.blob.sha256 == sha256 for program in self._run.facts.programs)

    def count(self, record: ClientRecord, direction: str, kind: str, size_bytes: int) -> None:
        """Add to a client's tally of bytes, "up" or "down", by kind."""
        with self._run.changed:
            tally = record.bytes_up if direction == "up" else record.bytes_down
            tally[kind] += size_bytes

    def leave(self, record: ClientRecord, reason: str, peak_memory_bytes: int) -> None:
        """A client says goodbye."""
        run = self._run
        with run.changed:
            record.note_memory(peak_memory_bytes)
            run.registry.depart(record.name, forget_session=True)
            log.info("client left", extra={"client": record.name, "reason": reason[:200]})
            run.apply(run.machine.departed(record.name, run.clock.now(), "left"))

    def wait_until_empty(self, timeout_seconds: float) -> None:
        """Wait until every live client has left, so that each has heard that the run is finished; at most `timeout_seconds`."""
        run = self._run
        with run.changed:
            run.changed.wait_for(lambda: run.registry.num_live == 0, timeout_seconds)

    def _assignment_of(self, record: ClientRecord) -> Assignment | None:
        run = self._run
        if run.attempt is None or run.machine.phase is not Phase.TRAINING or run.status(record) is not MemberStatus.TRAINING:
            return None
        return run.attempt.assignment
