"""Going on with a recorded attempt after a restart: its uploads and updates as they were acknowledged, its members as they were."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from heron_common.errors import StorageError
from heron_common.protocol.messages import Assignment, UploadPurpose
from heron_server.rounds.accepted import AcceptedUpdate, AcceptedUpload
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.schedule import UploadSlot
from heron_server.rounds.state import MemberStatus
from heron_server.storage.recorded import RecordedAttempt, RecordedUpload, StoredAnswer, StoredFile
from heron_server.storage.spool import Spool, SpoolEntry


def inputs_digest(assignment: Assignment, heads: dict[str, str]) -> str:
    """Return a digest of everything that an attempt's work depends on: plan, weights, scales; `heads` are the clients' own, by digest."""
    blobs = (assignment.client_model, assignment.auxiliary_head, assignment.statistics)
    parts = (
        assignment.plan,
        tuple(blob.sha256 for blob in blobs if blob is not None),
        assignment.direction_scales,
        assignment.second_moment,
        assignment.derivative_quantile,
        sorted(heads.items()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def member_statuses(recorded: RecordedAttempt) -> dict[str, MemberStatus]:
    """Return where each member of a recorded cohort stands."""
    submitted = {update.client_id for update in recorded.updates}
    statuses = {}
    for name in recorded.cohort:
        dropped = name in recorded.dropped and name not in submitted
        statuses[name] = MemberStatus.SUBMITTED if name in submitted else MemberStatus.DROPPED if dropped else MemberStatus.TRAINING
    return statuses


@dataclass(frozen=True)
class RecoveredFiles:
    """The payloads of a recorded attempt, taken up again; `problem` says why it cannot be gone on with, and nothing is held then."""

    entries: dict[str, SpoolEntry]
    problem: str = ""


def recover(recorded: RecordedAttempt, spool: Spool, covered: int) -> RecoveredFiles:
    """Take up what was acknowledged and is still needed: not what the first `covered` uploads in the order of training held."""
    entries: dict[str, SpoolEntry] = {}
    wanted = [(upload.payload, upload.key.client_id) for upload in recorded.uploads if not _is_covered(upload, covered)]
    wanted += [(upload.cut_gradient, "") for upload in recorded.uploads if upload.cut_gradient is not None]
    wanted += [(update.payload, "") for update in recorded.updates if update.payload is not None]
    try:
        for file, owner in wanted:
            if file.name is not None:
                entries[file.name] = spool.recover(file.name, file.size_bytes, owner=owner, sha256=file.sha256)
    except StorageError as exc:
        for entry in entries.values():
            spool.release(entry)
        return RecoveredFiles({}, str(exc))
    return RecoveredFiles(entries)


def refill(attempt: Attempt, recorded: RecordedAttempt, *, files: RecoveredFiles, covered: int, now: float) -> None:
    """Put everything that was acknowledged into an attempt again; the first `covered` in the order of training are not trained again."""

    def entry_of(file: StoredFile | None) -> SpoolEntry | None:
        return None if file is None or file.name is None else files.entries.get(file.name)

    uploads = [
        _upload(upload, covered, entry=entry_of(upload.payload), gradient=entry_of(upload.cut_gradient), now=now)
        for upload in recorded.uploads
    ]
    for upload in uploads:
        attempt.accept_upload(upload)
    attempt.order.skip(
        UploadSlot(upload.key.client_id, upload.key.local_step)
        for upload in uploads
        if upload.trained and upload.key.purpose is not UploadPurpose.EVALUATE
    )
    attempt.positions = covered
    for update in recorded.updates:
        attempt.updates[update.client_id] = AcceptedUpdate(
            update.client_id, update.sha256, entry=entry_of(update.payload), statistics=update.statistics, log=update.log
        )
    for name, status in member_statuses(recorded).items():
        if status is not MemberStatus.TRAINING:
            attempt.ended(name)


def _is_covered(upload: RecordedUpload, covered: int) -> bool:
    return upload.position is not None and upload.position < covered


def _upload(recorded: RecordedUpload, covered: int, *, entry: SpoolEntry | None, gradient: SpoolEntry | None, now: float) -> AcceptedUpload:
    trained = _is_covered(recorded, covered)
    # A rejection is covered without an answer of its own; its client may wait for one.
    answer = recorded.answer or (StoredAnswer(0, None, None) if trained else None)
    return AcceptedUpload(
        recorded.key,
        recorded.sha256,
        entry=entry,
        accepted_at=now,
        answer=answer,
        cut_gradient=gradient,
        trained=trained,
        length=recorded.length,
    )
