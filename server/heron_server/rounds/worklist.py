"""The trainer's side of a run: what to do next, and what was done. Thread-safe; `next_job` waits."""

from __future__ import annotations

from heron_common.assignment import UploadLoss
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.coordinator import Coordinator
from heron_server.rounds.jobs import AbandonJob, Job, RoundInputs, ScoreJob, TrainJob
from heron_server.rounds.state import Phase


class Worklist:
    """Hands jobs to the one thread that touches the model; it reports a job before it asks for the next."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._run = coordinator

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
        """An upload was judged and trained on; `loss` is None if its step is not an upload step. lambda goes to disk until its client has it."""
        run = self._run
        entry = None
        if cut_gradient is not None:
            with run.spool.open(len(cut_gradient), always=True) as writer:
                writer.write(bytes(cut_gradient))
                entry = writer.commit()
        with run.changed:
            upload.trained, upload.probe_losses, upload.server_version = True, probe_losses, server_version
            upload.cut_gradient = entry
            if loss is not None:
                record = run.registry.by_name[upload.key.client_id]
                record.add_loss(UploadLoss(upload.key.round, upload.key.local_step, loss, server_version))
            run.spool.release(upload.entry)
            run.metrics.upload_queue_seconds.observe(run.clock.now() - upload.accepted_at)
            run.metrics.uploads.labels(outcome="trained").inc()
            run.changed.notify_all()

    def upload_scored(self, upload: AcceptedUpload) -> None:
        """An upload of held-out samples was scored."""
        run = self._run
        with run.changed:
            upload.trained = True
            run.spool.release(upload.entry)
            run.metrics.uploads.labels(outcome="scored").inc()
            run.changed.notify_all()

    def round_done(self, inputs: RoundInputs) -> None:
        """A CloseJob or AbandonJob was carried out; `inputs` are what the next round starts from."""
        self._run.next_round(inputs)

    def _ready(self) -> Job | None:
        run = self._run
        if isinstance(run.closing, AbandonJob):
            return run.closing
        if run.attempt is not None and not (run.draining and run.closing is None):
            held_out = run.attempt.held_out.take()
            if held_out is not None:
                return ScoreJob(held_out, run.attempt.assignment.plan)
            uploads = run.attempt.take_uploads()
            if uploads:
                return TrainJob(uploads, run.attempt.assignment.plan)
        return run.closing
