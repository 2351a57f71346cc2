"""Going on with a recorded attempt after a restart: its uploads and updates as they were acknowledged, its members as they were."""

from __future__ import annotations

import hashlib

from heron_common.assignment import Assignment, UploadPurpose
from heron_server.rounds.accepted import AcceptedUpdate, AcceptedUpload
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.state import MemberStatus
from heron_server.storage.recorded import RecordedAttempt, RecordedUpload, StoredAnswer, StoredFile
from heron_server.storage.spool import Spool, SpoolEntry
from heron_server.training.schedule import UploadSlot


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


def refill(attempt: Attempt, recorded: RecordedAttempt, spool: Spool, covered: int, now: float) -> None:
    """Put everything that was acknowledged into an attempt again; the first `covered` in the order of training are not trained again.

    Raises:
        StorageError: a payload is gone or damaged; nothing of the spool is held then.

    """
    held: list[SpoolEntry] = []

    def take(file: StoredFile | None, needed: bool, owner: str = "") -> SpoolEntry | None:
        if file is None or file.name is None or not needed:
            return None
        held.append(spool.recover(file.name, file.size_bytes, owner, file.sha256))
        return held[-1]

    try:
        uploads = [
            _upload(
                upload,
                covered,
                take(upload.payload, not _is_covered(upload, covered), upload.key.client_id),
                take(upload.cut_gradient, True),
                now,
            )
            for upload in recorded.uploads
        ]
        updates = [AcceptedUpdate(u.client_id, u.sha256, take(u.payload, True), u.statistics, u.log) for u in recorded.updates]
    except BaseException:
        for entry in held:
            spool.release(entry)
        raise
    for upload in uploads:
        attempt.accept_upload(upload)
    attempt.order.skip(
        UploadSlot(upload.key.client_id, upload.key.local_step)
        for upload in uploads
        if upload.trained and upload.key.purpose is not UploadPurpose.EVALUATE
    )
    attempt.positions = covered
    for update in updates:
        attempt.updates[update.client_id] = update
    for name, status in member_statuses(recorded).items():
        if status is not MemberStatus.TRAINING:
            attempt.ended(name)


def _is_covered(upload: RecordedUpload, covered: int) -> bool:
    return upload.position is not None and upload.position < covered


def _upload(recorded: RecordedUpload, covered: int, entry: SpoolEntry | None, gradient: SpoolEntry | None, now: float) -> AcceptedUpload:
    trained = _is_covered(recorded, covered)
    # A rejection is covered without an answer of its own; its client may wait for one.
    answer = recorded.answer or (StoredAnswer(0, None, None) if trained else None)
    return AcceptedUpload(recorded.key, recorded.sha256, entry, now, answer, gradient, trained, length=recorded.length)
