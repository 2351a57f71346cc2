"""The trainer's side of a run: what to do next, and what was done. Thread-safe; `next_job` waits."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import replace

from heron_common.assignment import UploadLoss
from heron_common.crash_points import CrashPoint, crash_point
from heron_common.errors import StorageError
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.coordinator import Coordinator
from heron_server.rounds.jobs import AbandonJob, Job, RoundInputs, SaveJob, ScoreJob, TrainJob
from heron_server.rounds.state import Phase
from heron_server.storage.recorded import StoredAnswer
from heron_server.storage.spool import SpoolEntry

log = logging.getLogger(__name__)

SAVE_PAUSE_SECONDS = 10.0
"""After a checkpoint inside a round that the disk refused; training goes on meanwhile."""

SAVE_SHARE = 0.25
"""A checkpoint inside a round has to free so much of what the spool holds, or it is not worth its time."""


class Worklist:
    """Hands jobs to the one thread that touches the model; it reports a job before it asks for the next."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._run = coordinator
        self._save_not_before = -math.inf
        self._given_up: list[SpoolEntry] = []
        """Payloads to delete once the ledger does not name them any more."""

    def next_job(self) -> Job | None:
        """Wait for work and return it; None once the run drains or is finished."""
        run = self._run
        with run.changed:
            while True:
                job = self._ready()
                if job is not None:
                    return job
                if run.draining or run.machine.phase is Phase.FINISHED:
                    return None
                run.changed.wait(1.0)

    def upload_trained(
        self,
        upload: AcceptedUpload,
        loss: float | None,
        probe_losses: tuple[float, ...] | None,
        server_version: int,
        cut_gradient: bytes | memoryview | None = None,
    ) -> None:
        """An upload was judged and trained on; `loss` is None if its step is not an upload step. lambda goes to disk until its round ends.

        After a restart this happens again for uploads that a checkpoint does not cover; what their clients were told then stands.
        """
        run = self._run
        crash_point(CrashPoint.STEP_TAKEN)
        entry = upload.cut_gradient
        if cut_gradient is not None and entry is None:
            entry = self._spooled(bytes(cut_gradient))
        answer = StoredAnswer(server_version, loss, probe_losses)
        with run.changed:
            self._compare(upload, answer)
            upload.trained, upload.answer, upload.cut_gradient = True, upload.answer or answer, entry
            position = self._attempt().next_position()
            run.ledger.upload_trained(upload.key, position, upload.answer, entry.to_stored() if entry is not None else None)
            if loss is not None:
                record = run.registry.by_name[upload.key.client_id]
                record.add_loss(UploadLoss(upload.key.round, upload.key.local_step, loss, server_version))
            run.metrics.upload_queue_seconds.observe(run.clock.now() - upload.accepted_at)
            run.metrics.uploads.labels(outcome="trained").inc()
            run.changed.notify_all()
        crash_point(CrashPoint.STEP_RECORDED)

    def _spooled(self, cut_gradient: bytes) -> SpoolEntry:
        """Return lambda's place on disk; while the disk refuses training waits, for the step is taken and its client cannot go on without.

        Raises:
            StorageError: the run drains before there is room; the step is not recorded, so that a restart takes it again.

        """
        run, told = self._run, False
        while True:
            try:
                with run.spool.open(len(cut_gradient), always=True) as writer:
                    writer.write(cut_gradient)
                    return replace(writer.commit(), sha256=hashlib.sha256(cut_gradient).hexdigest())
            except StorageError as exc:
                with run.changed:
                    if run.draining:
                        raise
                    if not told:
                        log.error("training waits for room on the disk", extra={"reason": str(exc)})
                    told = True
                    run.changed.wait(1.0)

    def upload_scored(self, upload: AcceptedUpload) -> None:
        """An upload of held-out samples was scored."""
        run = self._run
        with run.changed:
            upload.trained = True
            run.ledger.upload_scored(upload.key, self._attempt().next_position())
            run.metrics.uploads.labels(outcome="scored").inc()
            run.changed.notify_all()

    def upload_rejected(self, upload: AcceptedUpload, reason: str, sets_apart: bool = False) -> None:
        """An upload is not trained on; its client hears of it as of a trained one, for it could only send the same again.

        A client that is set apart is dropped from the attempt, and so is one whose step waits for an answer that only training gives.
        """
        run = self._run
        with run.changed:
            upload.trained, upload.answer = True, upload.answer or StoredAnswer(0, None, None)
            run.ledger.upload_rejected(upload.key, self._attempt().next_position(), reason)
            run.metrics.uploads.labels(outcome="rejected").inc()
            if sets_apart:
                run.ledger.quarantined(upload.key.client_id, upload.key.round.round_index, reason)
            if sets_apart or self._attempt().assignment.plan.waits_for_answers:
                run.apply(run.machine.drop(upload.key.client_id, run.clock.now(), "upload rejected"))
            run.changed.notify_all()

    def open_round_saved(self, succeeded: bool) -> None:
        """A SaveJob was carried out: what it covers is given up, unless the disk refused."""
        run = self._run
        if not succeeded:
            self._save_not_before = run.clock.now() + SAVE_PAUSE_SECONDS
            return
        with run.changed:
            covered, without_gradient, released = self._attempt().give_up_covered()
            for upload in covered:
                run.ledger.payload_forgotten(upload.key)
            for upload in without_gradient:
                run.ledger.gradient_forgotten(upload.key)
        self._given_up += released
        self._delete_given_up()

    def _delete_given_up(self) -> None:
        """Delete what the ledger has on disk as given up: deleted before, a crash would leave a round whose files are gone, to be repeated."""
        run = self._run
        if not self._given_up:
            return
        try:
            run.ledger.sync()
        except StorageError as exc:
            log.error(str(exc))
            return
        with run.changed:
            for entry in self._given_up:
                run.spool.release(entry)
            self._given_up.clear()
            run.changed.notify_all()

    def round_done(self, inputs: RoundInputs, covered: bool) -> None:
        """A CloseJob or AbandonJob was carried out; `inputs` are what the next round starts from, `covered` says whether a checkpoint holds them."""
        self._run.next_round(inputs, covered)
        self._delete_given_up()

    def _attempt(self) -> Attempt:
        attempt = self._run.attempt
        if attempt is None:
            raise RuntimeError("the trainer reports on an attempt that is over")
        return attempt

    def _compare(self, upload: AcceptedUpload, answer: StoredAnswer) -> None:
        """Say so if a replay arrives elsewhere than what was told before; NaN equals itself here."""
        if upload.answer is not None and repr(upload.answer) != repr(answer):
            self._run.metrics.replay_mismatches.inc()
            log.warning(
                "training an upload again after a restart gave another answer than before; the first one stands",
                extra={
                    "client": upload.key.client_id,
                    "local_step": upload.key.local_step,
                    "before": str(upload.answer),
                    "now": str(answer),
                },
            )

    def _ready(self) -> Job | None:
        run = self._run
        if isinstance(run.closing, AbandonJob):
            return run.closing
        if run.attempt is not None and not (run.draining and run.closing is None):
            if run.closing is None and run.start_is_saved and self._is_worth_saving(run.attempt):
                inputs = run.inputs_of_open_round()
                return SaveJob(run.attempt.assignment.round, run.attempt.cohort, run.attempt.positions, inputs)
            held_out = run.attempt.held_out.take()
            if held_out is not None:
                return ScoreJob(held_out, run.attempt.assignment.plan)
            uploads = run.attempt.take_uploads()
            if uploads:
                return TrainJob(uploads, run.attempt.assignment.plan)
        return run.closing

    def _is_worth_saving(self, attempt: Attempt) -> bool:
        spool = self._run.spool
        if not spool.is_half_full or self._run.clock.now() < self._save_not_before:
            return False
        return attempt.covered_bytes() >= SAVE_SHARE * spool.used_bytes
