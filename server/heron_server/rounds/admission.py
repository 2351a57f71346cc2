"""What clients send: admitted by its header before a byte is read, accepted when it arrived whole. Changes the owner's state, under its lock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Generic, TypeVar

from heron_common.algorithm.plan import UpdateEncoding
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import TensorSpec, total_bytes
from heron_common.protocol.messages import LocalStatistics, UploadAnswer, UploadKey, UploadPurpose
from heron_common.specification.text_lengths import announced_length
from heron_server.rounds.accepted import AcceptedUpdate, AcceptedUpload
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.clients import ClientRecord, ClientStream
from heron_server.rounds.membership import client_of
from heron_server.rounds.run_state import RunState
from heron_server.rounds.state import MemberStatus, Phase
from heron_server.storage.spool import SpoolEntry

Cancel = Callable[[], object] | None
"""Ends a stream from outside, when what it belongs to is over."""


@dataclass(frozen=True)
class Header:
    """What a client announces before a stream: whose it is, of which round, its tensors and their size."""

    session: str
    speaker: str
    _: KW_ONLY
    run_id: str
    round: RoundReference
    tensors: tuple[TensorSpec, ...]
    total_bytes: int
    losses_seen: int = 0


@dataclass(frozen=True)
class UploadHeader(Header):
    """What a client announces before an upload."""

    purpose: UploadPurpose = UploadPurpose.TRAIN
    local_step: int = 0
    num_probes: int = 0

    def key_of(self, client_id: str) -> UploadKey:
        """Return the key under which it is known."""
        return UploadKey(self.round, client_id, purpose=self.purpose, local_step=self.local_step)


@dataclass(frozen=True)
class UpdateHeader(Header):
    """What a client announces before an update."""

    steps: int = 0
    encoding: UpdateEncoding = UpdateEncoding.DENSE


AnyHeader = TypeVar("AnyHeader", bound=Header)


@dataclass(frozen=True)
class Admission(Generic[AnyHeader]):
    """Leave to send one upload or update: its tensors, and how much room it needs; none if it was accepted before.

    `is_needed` says that training waits for it, so that it must be taken in whatever the spool holds.
    """

    header: AnyHeader
    stream: ClientStream
    _: KW_ONLY
    specs: tuple[TensorSpec, ...]
    room_bytes: int
    is_needed: bool
    at: float

    @property
    def client(self) -> ClientRecord:
        """Whose it is."""
        return self.stream.client


def admit_upload(run: RunState, header: UploadHeader, cancel: Cancel) -> Admission[UploadHeader]:
    """Check an upload's header and open its client's one stream.

    Raises:
        RefusedError: it does not belong to this round, is not what the plan asks for, comes too early, or another stream is open.

    """
    client = client_of(run, header.session, header.speaker)
    key = header.key_of(client.name)
    attempt = _open_attempt(run, client, run_id=header.run_id, reference=header.round)
    specs = attempt.check_upload(key, header.num_probes, tensors=header.tensors, announced_bytes=header.total_bytes)
    room = total_bytes(specs) if attempt.known_digest(key) is None else 0
    return Admission(
        header,
        _occupy(client, cancel),
        specs=specs,
        room_bytes=room,
        is_needed=attempt.is_needed_next(key),
        at=run.clock.now(),
    )


def admit_update(run: RunState, header: UpdateHeader, cancel: Cancel) -> Admission[UpdateHeader]:
    """Check an update's header; refuses like `admit_upload`."""
    client = client_of(run, header.session, header.speaker)
    attempt = _attempt_of_update(run, client, run_id=header.run_id, reference=header.round)
    specs = attempt.check_update(
        client.name, header.steps, encoding=header.encoding, tensors=header.tensors, announced_bytes=header.total_bytes
    )
    room = total_bytes(specs) if specs and client.name not in attempt.updates else 0
    return Admission(header, _occupy(client, cancel), specs=specs, room_bytes=room, is_needed=True, at=run.clock.now())


def accept_upload(run: RunState, admission: Admission[UploadHeader], *, sha256: str, entry: SpoolEntry | None) -> bool:
    """Acknowledge an upload that arrived whole; returns whether its payload was taken over: a repeated one's is not.

    Raises:
        RefusedError: CONFLICTING_UPLOAD if it came before with other bytes (its client then sits the attempt out), or its round is over.

    """
    client, key = admission.client, admission.header.key_of(admission.client.name)
    attempt = _open_attempt(run, client, run_id=run.facts.run_id, reference=key.round)
    known = attempt.known_digest(key)
    if known is not None and known != sha256:
        run.advance(lambda now: run.machine.drop(client.name, now, "sent other bytes for the same upload"))
        raise RefusedError(
            ErrorCode.CONFLICTING_UPLOAD,
            f"the {key.purpose.value} upload of step {key.local_step} came before with other bytes: sit this attempt out",
        )
    now = run.clock.now()
    is_new = known is None and entry is not None
    if known is None and entry is not None:
        length = announced_length(attempt.facts.model, admission.specs)
        attempt.accept_upload(AcceptedUpload(key, sha256, entry=entry, accepted_at=now, length=length))
        run.outbox.ledger.upload_accepted(key, sha256, payload=entry.to_stored(), length=length)
        if key.purpose is not UploadPurpose.EVALUATE:
            attempt.acknowledged(client.name, key.local_step)
    metrics = run.metrics

    def count() -> None:
        metrics.uploads.labels(outcome="accepted" if known is None else "repeated").inc()
        metrics.upload_seconds.observe(now - admission.at)

    run.outbox.then(count)
    return is_new


def answer_upload(run: RunState, admission: Admission[UploadHeader]) -> tuple[UploadAnswer, SpoolEntry | None] | None:
    """Return the answer to an accepted upload, and where lambda lies if the plan needs it; None while the trainer has to say more.

    Raises:
        RefusedError: ROUND_OVER, NOT_IN_COHORT or DRAINING.

    """
    client, key = admission.client, admission.header.key_of(admission.client.name)
    attempt = _open_attempt(run, client, run_id=run.facts.run_id, reference=key.round)
    if key.purpose is UploadPurpose.EVALUATE:
        return UploadAnswer(0, probe_losses=(), losses=client.losses_after(admission.header.losses_seen)), None
    upload, plan = attempt.uploads[key], attempt.assignment.plan
    if upload.answer is None and plan.waits_for_answers:
        return None
    _refuse_without_gradients(run, attempt, upload)
    said = upload.answer if upload.answer is not None and upload.answer.probe_losses else None
    version, probes = (said.server_version, said.probe_losses or ()) if said is not None else (0, ())
    return UploadAnswer(version, probe_losses=probes, losses=client.losses_after(admission.header.losses_seen)), upload.cut_gradient


def attempt_of_update(run: RunState, admission: Admission[UpdateHeader], sha256: str) -> Attempt | None:
    """Return the attempt that an update belongs to; None if it was accepted before.

    Raises:
        RefusedError: CONFLICTING_UPLOAD if another one came before, or its round is over.

    """
    attempt = _attempt_of_update(run, admission.client, run_id=run.facts.run_id, reference=admission.header.round)
    known = attempt.updates.get(admission.client.name)
    if known is not None and known.sha256 != sha256:
        raise RefusedError(ErrorCode.CONFLICTING_UPLOAD, "this round's update came before with other bytes: the first one stands")
    return None if known is not None else attempt


def accept_update(
    run: RunState,
    admission: Admission[UpdateHeader],
    sha256: str,
    *,
    entry: SpoolEntry | None,
    statistics: LocalStatistics,
    log_bytes: bytes | None,
) -> bool:
    """Accept an update that arrived whole; returns whether its payload was taken over: the same one again changes nothing. Refuses like `attempt_of_update`."""
    attempt = attempt_of_update(run, admission, sha256)
    if attempt is None:
        return False
    client = admission.client
    attempt.updates[client.name] = AcceptedUpdate(client.name, sha256, entry=entry, statistics=statistics, log=log_bytes)
    stored = entry.to_stored() if entry is not None else None
    run.outbox.ledger.update_accepted(
        attempt.assignment.round, client.name, sha256=sha256, payload=stored, statistics=statistics, log_bytes=log_bytes
    )
    attempt.acknowledged(client.name)
    attempt.ended(client.name)
    client.note_memory(statistics.peak_memory)
    run.advance(lambda now: run.machine.submitted(client.name, now))
    return True


def release(stream: ClientStream) -> None:
    """A stream ended, however it ended; another that its client opened since is not touched; safe to repeat."""
    if stream.client.stream is stream:
        stream.client.stream = None


def is_in_turn(run: RunState, header: UploadHeader) -> bool:
    """Whether waiting longer changes nothing for an upload."""
    attempt = run.attempt
    if run.draining or attempt is None or run.machine.phase is not Phase.TRAINING or attempt.assignment.round != header.round:
        return True
    return attempt.is_in_turn(header.key_of(run.registry.of_session(header.session).name))


def _occupy(client: ClientRecord, cancel: Cancel) -> ClientStream:
    if client.stream is not None:
        raise RefusedError(ErrorCode.STREAM_BUSY, "this client has an upload under way: send one at a time", 0.5)
    client.stream = ClientStream(client, cancel)
    return client.stream


def _refuse_without_gradients(run: RunState, attempt: Attempt, upload: AcceptedUpload) -> None:
    """A client that begins its round again may ask for gradients that gave way to others: it sits the attempt out."""
    plan = attempt.assignment.plan
    if not plan.needs_cut_gradient or upload.cut_gradient is not None or not plan.uploads_at(upload.key.local_step):
        return
    run.advance(lambda now: run.machine.drop(upload.key.client_id, now, "asked again for gradients that are not kept"))
    raise RefusedError(
        ErrorCode.ROUND_OVER,
        f"the gradients of step {upload.key.local_step} were given once and are not kept any more: sit this attempt out, or raise --spool-bytes",
    )


def _open_attempt(run: RunState, record: ClientRecord, *, run_id: str, reference: RoundReference) -> Attempt:
    run.refuse_if_draining()
    attempt = run.attempt
    if attempt is None or run_id != run.facts.run_id or attempt.assignment.round != reference or run.machine.phase is not Phase.TRAINING:
        raise RefusedError(
            ErrorCode.ROUND_OVER,
            f"{reference.in_words} of run {run_id[:8]!r} is not open on this server: ask for the next assignment",
        )
    if run.status(record) is not MemberStatus.TRAINING:
        raise RefusedError(
            ErrorCode.NOT_IN_COHORT,
            f"client {record.name!r} is not at work on {reference.in_words}: ask for the next assignment",
        )
    return attempt


def _attempt_of_update(run: RunState, record: ClientRecord, *, run_id: str, reference: RoundReference) -> Attempt:
    # An update whose answer was lost is sent again, perhaps after its round was closed.
    for attempt in (run.attempt, run.previous):
        if attempt is not None and attempt.assignment.round == reference and record.name in attempt.updates and run_id == run.facts.run_id:
            return attempt
    return _open_attempt(run, record, run_id=run_id, reference=reference)
