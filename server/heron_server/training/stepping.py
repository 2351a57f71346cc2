"""Server steps: from an upload (or several, mixed) to a step of the back, losses for its clients, and lambda where the plan needs it."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from heron_common.algorithm.plan import Plan
from heron_common.numerics.directions import derive_seed
from heron_common.numerics.wire_dtypes import encode_rows
from heron_common.process.clock import Clock
from heron_common.protocol.messages import UploadKey
from heron_server.metrics import ServerMetrics
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.jobs import TrainJob
from heron_server.rounds.trainer_queue import TrainerQueue
from heron_server.training.alignment import HeadAlignment
from heron_server.training.gatekeeping import Gatekeeper
from heron_server.training.proportion import StepRefusal
from heron_server.training.server_step import StepOutcome
from heron_server.training.trainer import Trainer
from heron_server.training.uploads import DecodedUpload, decode_upload, mixed_batches

log = logging.getLogger(__name__)


class Stepper:
    """Trains on uploads; `server_losses` are those of the steps of the present round."""

    def __init__(
        self,
        facts: RunFacts,
        *,
        trainer: Trainer,
        gatekeeper: Gatekeeper,
        alignment: HeadAlignment | None,
        metrics: ServerMetrics,
        clock: Clock,
    ) -> None:
        self._facts, self._trainer, self._gatekeeper, self._alignment = facts, trainer, gatekeeper, alignment
        self._metrics, self._clock = metrics, clock
        self.server_losses: list[float] = []

    def run(self, job: TrainJob, queue: TrainerQueue) -> None:
        """Carry out one job and report it."""
        if len(job.uploads) > 1:
            self._train_mixed(job, queue)
            return
        started = self._clock.now()
        (upload,) = job.uploads
        trainer, plan, client_id = self._trainer, job.plan, upload.key.client_id
        decoded = decode_upload(upload, plan, self._facts.model)
        version = trainer.server_version
        judged = None
        if plan.num_probes:
            judged = tuple(float(v) for v in trainer.judge(decoded, client_id).reshape(-1))
        loss: float | None = None
        cut_gradient = None
        keeper = self._gatekeeper
        if plan.uploads_at(upload.key.local_step):
            verdict = keeper.judge(upload, decoded, lambda: self._base_loss(decoded, client_id))
            if not verdict.accepted:
                keeper.reject(upload, verdict, queue)
                return
            outcome = trainer.train(decoded, client_id, wants_cut_gradient=plan.needs_cut_gradient, gradient_limit=keeper.gradient_limit)
            if outcome.refusal is not None:
                self._refuse(upload, outcome.refusal, queue)
                return
            loss = outcome.server
            keeper.trained(client_id, outcome.gradient_norm)
            self._note(outcome)
            cut_gradient = self._encoded(outcome, upload.key, plan)
            if self._alignment is not None:
                self._alignment.keep(client_id, decoded)
        self._metrics.step_seconds.observe(self._clock.now() - started)
        queue.upload_trained(upload, loss, judged, server_version=version, cut_gradient=cut_gradient)

    def _train_mixed(self, job: TrainJob, queue: TrainerQueue) -> None:
        """Mix the uploads of one step into batches with rows of all clients; each upload's loss is the mean over its own rows."""
        started = self._clock.now()
        key, keeper = job.uploads[0].key, self._gatekeeper
        admitted = self._without_rejected([(upload, decode_upload(upload, job.plan, self._facts.model)) for upload in job.uploads], queue)
        if not admitted:
            return
        decoded, lengths, limit = [d for _, d in admitted], list[float](), keeper.gradient_limit
        version = self._trainer.server_version
        sums = np.zeros(len(decoded), np.float64)
        seed = derive_seed(self._facts.run_seed, "", round_reference=key.round, purpose="mix", index=key.local_step)
        for batch in mixed_batches(decoded, seed):
            outcome = self._trainer.train(batch.rows, gradient_limit=limit)
            lengths += [outcome.gradient_norm] if outcome.gradient_norm is not None else []
            if outcome.refusal is not None:
                # Each upload was fit to be trained on by itself: nobody is to blame.
                self._metrics.steps_skipped.inc()
                log.warning("a step on mixed uploads was not taken", extra=asdict(outcome.refusal))
                sums[np.unique(batch.sources)] = np.nan
                continue
            self._note(outcome)
            np.add.at(sums, batch.sources, outcome.losses.astype(np.float64))
        self._metrics.step_seconds.observe(self._clock.now() - started)
        for (upload, part), total in zip(admitted, sums, strict=True):
            keeper.trained(upload.key.client_id, max(lengths, default=None))
            if self._alignment is not None:
                self._alignment.keep(upload.key.client_id, part)
            queue.upload_trained(upload, float(total) / len(part.labels), None, server_version=version)

    def _base_loss(self, decoded: DecodedUpload, client_id: str) -> float:
        base = replace(decoded, activations=decoded.activations[: len(decoded.labels)])
        return float(np.mean(self._trainer.judge(base, client_id), dtype=np.float64))

    def _without_rejected(
        self, read: list[tuple[AcceptedUpload, DecodedUpload]], queue: TrainerQueue
    ) -> list[tuple[AcceptedUpload, DecodedUpload]]:
        """Reject what may not be mixed into batches and return the rest; all are judged by the back that stands before any is trained on."""
        admitted = []
        for upload, decoded in read:
            client_id = upload.key.client_id
            verdict = self._gatekeeper.judge(upload, decoded, partial(self._base_loss, decoded, client_id))
            if not verdict.accepted:
                self._gatekeeper.reject(upload, verdict, queue)
            # One that could not be trained on by itself: in a batch with rows of others nobody could say whose the fault is.
            elif (refusal := self._trainer.examine(decoded, client_id)) is not None:
                self._refuse(upload, refusal, queue)
            else:
                admitted.append((upload, decoded))
        return admitted

    def _refuse(self, upload: AcceptedUpload, refusal: StepRefusal, queue: TrainerQueue) -> None:
        self._metrics.steps_skipped.inc()
        self._gatekeeper.refuse(upload, refusal, queue)

    def _note(self, outcome: StepOutcome) -> None:
        metrics = self._metrics
        self.server_losses.append(outcome.server)
        metrics.train_loss.set(outcome.server)
        metrics.gradients_shortened.inc(outcome.shortened)
        if outcome.head is not None:
            metrics.head_loss.set(outcome.head)

    def _encoded(self, outcome: StepOutcome, key: UploadKey, plan: Plan) -> memoryview | None:
        if outcome.cut_gradient is None:
            return None
        seed = derive_seed(
            self._facts.run_seed, key.client_id, round_reference=key.round, purpose="quantise_cut_gradient", index=key.local_step
        )
        return encode_rows(np.ascontiguousarray(outcome.cut_gradient), plan.wire_dtype, noise_seed=seed, first_row=0)
