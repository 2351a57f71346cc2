"""What the trainer does next, and what it did. Changes the owner's state, under its lock."""

from __future__ import annotations

import math

from heron_common.protocol.messages import UploadLoss
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.jobs import AbandonJob, Job, RoundInputs, SaveJob, ScoreJob, TrainJob
from heron_server.rounds.run_state import RunState
from heron_server.storage.recorded import StoredAnswer
from heron_server.storage.spool import SpoolEntry


def ready_job(run: RunState, worth_bytes: float) -> Job | None:
    """Return the next job, if there is one; the uploads of a TrainJob are taken. A SaveJob has to free so many bytes."""
    if isinstance(run.closing, AbandonJob):
        return run.closing
    if run.attempt is not None and not (run.draining and run.closing is None):
        if run.closing is None and run.start_is_saved and _is_worth_saving(run.attempt, worth_bytes):
            return SaveJob(
                run.attempt.assignment.round, run.attempt.cohort, positions=run.attempt.positions, inputs=inputs_of_open_round(run)
            )
        held_out = run.attempt.held_out.take()
        if held_out is not None:
            return ScoreJob(held_out, run.attempt.assignment.plan)
        uploads = run.attempt.take_uploads()
        if uploads:
            return TrainJob(uploads, run.attempt.assignment.plan)
    return run.closing


def _is_worth_saving(attempt: Attempt, worth_bytes: float) -> bool:
    return worth_bytes < math.inf and attempt.covered_bytes() >= worth_bytes


def inputs_of_open_round(run: RunState) -> RoundInputs:
    """Return what the open round started from."""
    if run.prepared is None:
        raise RuntimeError("no round was opened yet")
    return run.prepared.inputs


def trained(run: RunState, upload: AcceptedUpload, *, answer: StoredAnswer, gradient: SpoolEntry | None) -> None:
    """An upload was judged and trained on.

    After a restart this happens again for uploads that a checkpoint does not cover; what their clients were told then stands.
    """
    _compare(run, upload, answer)
    upload.trained, upload.answer, upload.cut_gradient = True, upload.answer or answer, gradient
    position = run.open_attempt().next_position()
    run.outbox.ledger.upload_trained(
        upload.key, position, answer=upload.answer, cut_gradient=gradient.to_stored() if gradient is not None else None
    )
    if answer.loss is not None:
        record = run.registry.by_name[upload.key.client_id]
        record.add_loss(UploadLoss(upload.key.round, upload.key.local_step, server_loss=answer.loss, server_version=answer.server_version))
    metrics, queued = run.metrics, run.clock.now() - upload.accepted_at

    def count() -> None:
        metrics.upload_queue_seconds.observe(queued)
        metrics.uploads.labels(outcome="trained").inc()

    run.outbox.then(count)


def scored(run: RunState, upload: AcceptedUpload) -> None:
    """An upload of held-out samples was scored."""
    upload.trained = True
    run.outbox.ledger.upload_scored(upload.key, run.open_attempt().next_position())
    run.outbox.then(lambda: run.metrics.uploads.labels(outcome="scored").inc())


def rejected(run: RunState, upload: AcceptedUpload, *, reason: str, sets_apart: bool) -> None:
    """An upload is not trained on; its client hears of it as of a trained one, for it could only send the same again.

    A client that is set apart is dropped from the attempt, and so is one whose step waits for an answer that only training gives.
    """
    attempt = run.open_attempt()
    upload.trained, upload.answer = True, upload.answer or StoredAnswer(0, None, None)
    run.outbox.ledger.upload_rejected(upload.key, attempt.next_position(), reason)
    run.outbox.then(lambda: run.metrics.uploads.labels(outcome="rejected").inc())
    if sets_apart:
        run.outbox.ledger.quarantined(upload.key.client_id, upload.key.round.round_index, reason)
    if sets_apart or attempt.assignment.plan.waits_for_answers:
        run.advance(lambda now: run.machine.drop(upload.key.client_id, now, "upload rejected"))


def saved(run: RunState) -> None:
    """A checkpoint inside the round covers what was trained: its payloads are given up."""
    covered, without_gradient, released = run.open_attempt().give_up_covered()
    for upload in covered:
        run.outbox.ledger.payload_forgotten(upload.key)
    for upload in without_gradient:
        run.outbox.ledger.gradient_forgotten(upload.key)
    run.outbox.delete(released)


def _compare(run: RunState, upload: AcceptedUpload, answer: StoredAnswer) -> None:
    """Say so if a replay arrives elsewhere than what was told before; NaN equals itself here."""
    if upload.answer is not None and repr(upload.answer) != repr(answer):
        run.outbox.then(lambda: run.metrics.replay_mismatches.inc())
        run.outbox.warn(
            "training an upload again after a restart gave another answer than before; the first one stands",
            client=upload.key.client_id,
            local_step=upload.key.local_step,
            before=str(upload.answer),
            now=str(answer),
        )
