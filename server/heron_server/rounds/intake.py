"""Uploads and updates: admitted by their headers before a byte is read, accepted when they arrived whole. Thread-safe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from heron_common.assignment import LocalStatistics, UploadAnswer, UploadKey, UploadPurpose
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError, SpoolFullError, StorageError
from heron_common.ids import RoundReference, new_token
from heron_common.plan import UpdateEncoding
from heron_common.tensors import TensorSpec, total_bytes
from heron_common.text_lengths import announced_length
from heron_common.timing import Timing
from heron_server.rounds.accepted import AcceptedUpdate, AcceptedUpload
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.clients import ClientRecord
from heron_server.rounds.coordinator import Coordinator
from heron_server.rounds.replay import replay_update
from heron_server.rounds.reported import check_reported, check_variances
from heron_server.rounds.state import MemberStatus, Phase
from heron_server.storage.spool import SpoolEntry, SpoolWriter

Cancel = Callable[[], None] | None
"""Ends a stream from outside, when what it belongs to is over."""


@dataclass(frozen=True)
class UploadTicket:
    """Leave to send one upload: its tensors, and a writer unless the same upload was accepted before."""

    client: ClientRecord
    key: UploadKey
    specs: tuple[TensorSpec, ...]
    writer: SpoolWriter | None
    started_at: float
    token: str


@dataclass(frozen=True)
class UpdateTicket:
    """Leave to send one update: its tensors, and a writer unless there are none or they were accepted before."""

    client: ClientRecord
    round: RoundReference
    encoding: UpdateEncoding
    specs: tuple[TensorSpec, ...]
    writer: SpoolWriter | None
    token: str


class Intake:
    """Takes in what clients send. A client has one stream open at a time: `release` it when it ended, however it ended."""

    def __init__(self, coordinator: Coordinator, hold_seconds: float = 0.0) -> None:
        """`hold_seconds` is how long an upload that comes too early waits instead of being refused; it keeps its caller's thread."""
        self._run = coordinator
        self._hold_seconds = hold_seconds
        self._heartbeat_seconds = Timing(coordinator.machine.rules.liveness_seconds).heartbeat_seconds

    def awaiting_header(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """A stream begins: it is cancelled if its header does not come."""
        return self._run.orphaned_streams.awaiting_header(cancel)

    def admit_upload(
        self,
        record: ClientRecord,
        run_id: str,
        key: UploadKey,
        num_probes: int,
        tensors: tuple[TensorSpec, ...],
        announced_bytes: int,
        cancel: Cancel = None,
    ) -> UploadTicket:
        """Check an upload's header and reserve room for its payload.

        Raises:
            RefusedError: it does not belong to this round, is not what the plan asks for, comes too early, or there is no room now.

        """
        run = self._run
        with run.changed:
            if self._hold_seconds:
                run.changed.wait_for(lambda: self._is_in_turn(key), self._hold_seconds)
            attempt = self._open_attempt(record, run_id, key.round)
            specs = attempt.check_upload(key, num_probes, tensors, announced_bytes)
            self._refuse_second_stream(record)
            writer = None
            if attempt.known_digest(key) is None:
                writer = self._writer(total_bytes(specs), attempt.is_needed_next(key), record.name)
            token = self._occupy(record, cancel)
            return UploadTicket(record, key, specs, writer, run.clock.now(), token)

    def accept_upload(self, ticket: UploadTicket, sha256: str) -> None:
        """Acknowledge an upload that arrived whole.

        Raises:
            RefusedError: CONFLICTING_UPLOAD if it came before with other bytes (its client then sits the attempt out), or its round is over.

        """
        run = self._run
        # Outside the lock: a disk may take its time.
        entry = _commit(ticket.writer) if ticket.writer is not None else None
        try:
            with run.changed:
                attempt = self._open_attempt(ticket.client, run.facts.run_id, ticket.key.round)
                known = attempt.known_digest(ticket.key)
                if known is not None and known != sha256:
                    run.apply(run.machine.drop(ticket.client.name, run.clock.now(), "sent other bytes for the same upload"))
                    raise RefusedError(
                        ErrorCode.CONFLICTING_UPLOAD,
                        f"the {ticket.key.purpose.value} upload of step {ticket.key.local_step} came before with other bytes: sit this attempt out",
                    )
                now = run.clock.now()
                if known is None and entry is not None:
                    length = announced_length(attempt.model, ticket.specs)
                    attempt.accept_upload(AcceptedUpload(ticket.key, sha256, entry, now, length=length))
                    run.ledger.upload_accepted(ticket.key, sha256, entry.to_stored(), length)
                    entry = None
                    if ticket.key.purpose is not UploadPurpose.EVALUATE:
                        attempt.acknowledged(ticket.client.name, ticket.key.local_step)
                run.metrics.uploads.labels(outcome="accepted" if known is None else "repeated").inc()
                run.metrics.upload_seconds.observe(now - ticket.started_at)
                run.changed.notify_all()
        finally:
            self._release_all([entry])

    def answer(self, ticket: UploadTicket, losses_seen: int) -> tuple[UploadAnswer, SpoolEntry | None] | None:
        """Return the answer to an accepted upload, and where lambda lies if the plan needs it.

        Waits for the trainer only where the step does, and at most a heartbeat: None means not yet.

        Raises:
            RefusedError: ROUND_OVER, NOT_IN_COHORT or DRAINING while it waited.

        """
        run = self._run
        until = run.clock.now() + self._heartbeat_seconds
        with run.changed:
            while True:
                attempt = self._open_attempt(ticket.client, run.facts.run_id, ticket.key.round)
                if ticket.key.purpose is UploadPurpose.EVALUATE:
                    return UploadAnswer(0, (), ticket.client.losses_after(losses_seen)), None
                upload, plan = attempt.uploads[ticket.key], attempt.assignment.plan
                if upload.answer is not None or not plan.waits_for_answers:
                    self._refuse_without_gradients(attempt, upload)
                    said = upload.answer if upload.answer is not None and upload.answer.probe_losses else None
                    version, probes = (said.server_version, said.probe_losses or ()) if said is not None else (0, ())
                    return UploadAnswer(version, probes, ticket.client.losses_after(losses_seen)), upload.cut_gradient
                if run.clock.now() >= until:
                    return None
                run.changed.wait(min(1.0, self._heartbeat_seconds))

    def _refuse_without_gradients(self, attempt: Attempt, upload: AcceptedUpload) -> None:
        """A client that begins its round again may ask for gradients that gave way to others: it sits the attempt out."""
        plan = attempt.assignment.plan
        if not plan.needs_cut_gradient or upload.cut_gradient is not None or not plan.uploads_at(upload.key.local_step):
            return
        run = self._run
        run.apply(run.machine.drop(upload.key.client_id, run.clock.now(), "asked again for gradients that are not kept"))
        raise RefusedError(
            ErrorCode.ROUND_OVER,
            f"the gradients of step {upload.key.local_step} were given once and are not kept any more: sit this attempt out, or raise --spool-bytes",
        )

    def admit_update(
        self,
        record: ClientRecord,
        run_id: str,
        reference: RoundReference,
        steps: int,
        encoding: UpdateEncoding,
        tensors: tuple[TensorSpec, ...],
        announced_bytes: int,
        cancel: Cancel = None,
    ) -> UpdateTicket:
        """Check an update's header and reserve room for its payload; refuses like `admit_upload`."""
        with self._run.changed:
            attempt = self._attempt_of_update(record, run_id, reference)
            specs = attempt.check_update(record.name, steps, encoding, tensors, announced_bytes)
            self._refuse_second_stream(record)
            writer = None
            if specs and record.name not in attempt.updates:
                writer = self._writer(total_bytes(specs), True)
            token = self._occupy(record, cancel)
            return UpdateTicket(record, reference, encoding, specs, writer, token)

    def accept_update(self, ticket: UpdateTicket, sha256: str, weights_sha256: bytes, statistics: LocalStatistics) -> None:
        """Accept an update that arrived whole; the same one again is fine. A log is replayed first, on this thread, outside the lock.

        Raises:
            RefusedError: CONFLICTING_UPLOAD if another one came before; LOG_MISMATCH if a log does not arrive at the weights that it names;
                NON_FINITE if what the client says of its round cannot be.

        """
        run, record = self._run, ticket.client
        check_reported(statistics)
        with run.changed:
            attempt = self._attempt_of_update(record, run.facts.run_id, ticket.round)
        if self._was_accepted(attempt, record, sha256):
            return
        entry = _commit(ticket.writer) if ticket.writer else None
        try:
            check_variances(entry, attempt.model)
        except RefusedError:
            self._release_all([entry])
            raise
        log_bytes = None
        if entry is not None and ticket.encoding is UpdateEncoding.LOG:
            payload, end = bytes(entry.read()), ticket.specs[0].size_bytes
            log_bytes, statistics_bytes = payload[:end], payload[end:]
            self._release_all([entry])
            entry = self._replayed(attempt, record, log_bytes, weights_sha256, statistics_bytes)
        with run.changed:
            try:
                attempt = self._attempt_of_update(record, run.facts.run_id, ticket.round)
                accepted_meanwhile = self._was_accepted(attempt, record, sha256)
            except RefusedError:
                self._release_all([entry])
                raise
            if accepted_meanwhile:
                self._release_all([entry])
                return
            attempt.updates[record.name] = AcceptedUpdate(record.name, sha256, entry, statistics, log_bytes)
            run.ledger.update_accepted(
                ticket.round, record.name, sha256, entry.to_stored() if entry is not None else None, statistics, log_bytes
            )
            attempt.acknowledged(record.name)
            attempt.ended(record.name)
            record.note_memory(statistics.peak_memory_bytes)
            run.apply(run.machine.submitted(record.name, run.clock.now()))

    def release(self, ticket: UploadTicket | UpdateTicket) -> None:
        """The stream of a ticket ended; another that its client opened since is not touched."""
        with self._run.changed:
            if ticket.client.uploading == ticket.token:
                ticket.client.uploading, ticket.client.cancel_stream = "", None

    def _was_accepted(self, attempt: Attempt, record: ClientRecord, sha256: str) -> bool:
        known = attempt.updates.get(record.name)
        if known is not None and known.sha256 != sha256:
            raise RefusedError(ErrorCode.CONFLICTING_UPLOAD, "this round's update came before with other bytes: the first one stands")
        return known is not None

    def _replayed(
        self, attempt: Attempt, record: ClientRecord, log_bytes: bytes, weights_sha256: bytes, statistics_bytes: bytes
    ) -> SpoolEntry:
        """Return the entry that a dense update would have: the weights that a log arrives at, and the statistics that came with it."""
        try:
            weights = replay_update(attempt, self._run.facts.run_seed, record.name, log_bytes, weights_sha256)
        except RefusedError:
            self._run.metrics.log_mismatches.inc()
            record.log_mismatches += 1
            raise
        payload = weights.tobytes() + statistics_bytes
        with self._writer(len(payload), True) as writer:
            writer.write(payload)
            return replace(_commit(writer), sha256=hashlib.sha256(payload).hexdigest())

    def _release_all(self, entries: Sequence[SpoolEntry | None]) -> None:
        for entry in entries:
            if entry is not None:
                self._run.spool.release(entry)

    def _writer(self, size_bytes: int, always: bool, owner: str = "") -> SpoolWriter:
        try:
            return self._run.spool.open(size_bytes, always, owner)
        except (SpoolFullError, StorageError) as exc:
            raise RefusedError(ErrorCode.SPOOL_FULL, f"{exc}: send it again later", 0.5) from exc

    def check_open(self, ticket: UploadTicket | UpdateTicket) -> None:
        """Refuse the rest of a stream whose round or session is over: ROUND_OVER."""
        with self._run.changed:
            if ticket.client.uploading != ticket.token:
                raise RefusedError(
                    ErrorCode.ROUND_OVER, "the round of this stream is not open on this server any more: ask for the next assignment"
                )

    def _is_in_turn(self, key: UploadKey) -> bool:
        """Whether waiting longer changes nothing for this upload."""
        run = self._run
        attempt = run.attempt
        if run.draining or attempt is None or run.machine.phase is not Phase.TRAINING or attempt.assignment.round != key.round:
            return True
        return attempt.is_in_turn(key)

    def _occupy(self, record: ClientRecord, cancel: Cancel) -> str:
        token = new_token()
        record.uploading, record.cancel_stream = token, cancel
        return token

    def _refuse_second_stream(self, record: ClientRecord) -> None:
        if record.uploading:
            raise RefusedError(ErrorCode.STREAM_BUSY, "this client has an upload under way: send one at a time", 0.5)

    def _open_attempt(self, record: ClientRecord, run_id: str, reference: RoundReference) -> Attempt:
        run = self._run
        run.refuse_if_draining()
        attempt = run.attempt
        stale = (
            run_id != run.facts.run_id
            or attempt is None
            or attempt.assignment.round != reference
            or run.machine.phase is not Phase.TRAINING
        )
        if attempt is None or stale:
            raise RefusedError(
                ErrorCode.ROUND_OVER,
                f"round {reference.round_index} attempt {reference.attempt} of run {run_id[:8]!r} is not open on this server: ask for the next assignment",
            )
        if run.status(record) is not MemberStatus.TRAINING:
            raise RefusedError(
                ErrorCode.NOT_IN_COHORT,
                f"client {record.name!r} is not at work on round {reference.round_index}: ask for the next assignment",
            )
        return attempt

    def _attempt_of_update(self, record: ClientRecord, run_id: str, reference: RoundReference) -> Attempt:
        # An update whose answer was lost is sent again, perhaps after its round was closed.
        for attempt in (self._run.attempt, self._run.previous):
            if (
                attempt is not None
                and attempt.assignment.round == reference
                and record.name in attempt.updates
                and run_id == self._run.facts.run_id
            ):
                return attempt
        return self._open_attempt(record, run_id, reference)


def _commit(writer: SpoolWriter) -> SpoolEntry:
    try:
        return writer.commit()
    except StorageError as exc:
        raise RefusedError(ErrorCode.SPOOL_FULL, f"{exc}: send it again later", 0.5) from exc
