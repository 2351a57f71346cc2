"""The one thread that touches the model: trains on uploads in their order, closes rounds, writes checkpoints and the summary."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from heron_common.assignment import DataSpecification, ModelSpec, upload_specs
from heron_common.clock import Clock
from heron_common.data.sources import DataSource
from heron_common.errors import CheckpointError, StorageError
from heron_common.plan import Algorithm
from heron_common.tensors import Float32Array, decode
from heron_common.zeroth_order import merge_second_moments
from heron_server.metrics import ServerMetrics
from heron_server.programs.publish import scales_of
from heron_server.rounds.aggregation import aggregation_weights, weighted_mean
from heron_server.rounds.jobs import AbandonJob, CloseJob, RoundInputs, TrainJob
from heron_server.rounds.worklist import Worklist
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore
from heron_server.summary import RoundRecord, round_rows
from heron_server.training.evaluation import evaluate
from heron_server.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunParts:
    """What the worker works with."""

    trainer: Trainer
    algorithm: Algorithm
    data: DataSpecification
    model: ModelSpec
    eval_source: DataSource | None
    checkpoints: CheckpointStore
    metrics: ServerMetrics
    write_summary: Callable[[dict[str, Any]], None]
    client_table: Callable[[], dict[str, Any]]
    clock: Clock


class TrainWorker:
    """Runs jobs until there are none left. `state` survives in checkpoints; `failure` tells why it died, if it did."""

    def __init__(self, parts: RunParts, summary_facts: dict[str, Any]) -> None:
        self._parts = parts
        self._summary_facts = summary_facts
        self._started = self._parts.clock.now()
        self._seconds_before = 0.0
        self.rounds: list[RoundRecord] = []
        self.second_moment = 0.0
        self.checkpoint_failed = False
        self.failure: BaseException | None = None
        self._server_losses: list[float] = []
        self._thread: threading.Thread | None = None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a round boundary."""
        state = checkpoint.state
        self._parts.trainer.load_tensors(checkpoint.tensors, int(state["server_version"]))
        self.second_moment = float(state["second_moment"])
        self.rounds = [RoundRecord(**row) for row in state["rounds"]]
        self._seconds_before = float(state["seconds"])

    def inputs(self) -> RoundInputs:
        """Return what the next round starts from."""
        front, head = self._parts.trainer.client_weights()
        scales = scales_of(self._parts.trainer.model, self._parts.algorithm)
        return RoundInputs(front.tobytes(), head.tobytes(), tuple(float(s) for s in scales), self.second_moment)

    def start(self, worklist: Worklist, on_end: Callable[[], None]) -> None:
        """Start the thread; `on_end` is called when it ends, for whatever reason."""

        def run() -> None:
            try:
                self._run(worklist)
            except BaseException as exc:
                log.exception("the trainer died")
                self.failure = exc
            finally:
                on_end()

        self._thread = threading.Thread(target=run, name="trainer", daemon=True)
        self._thread.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread to end; return whether it did."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        return self._thread is None or not self._thread.is_alive()

    def save(self) -> None:
        """Write a checkpoint of the present round boundary and the summary; a full disk is logged, counted and remembered."""
        parts = self._parts
        state = {
            "server_version": parts.trainer.server_version,
            "second_moment": self.second_moment,
            "rounds": round_rows(self.rounds),
            "clients": parts.client_table(),
            "seconds": self._seconds(),
        }
        try:
            parts.checkpoints.write(Checkpoint(len(self.rounds), parts.trainer.tensors(), state))
            self.checkpoint_failed = False
        except CheckpointError as exc:
            self.checkpoint_failed = True
            parts.metrics.checkpoint_failures.inc()
            log.error(str(exc))
        self.write_summary()

    def write_summary(self) -> None:
        """Replace the summary; a full disk is logged."""
        summary = {
            **self._summary_facts,
            "rounds_completed": len(self.rounds),
            "rounds": round_rows(self.rounds),
            "clients": self._parts.client_table(),
            "seconds": round(self._seconds(), 3),
            "checkpoint": str(self._parts.checkpoints.path_of(len(self.rounds))),
        }
        try:
            self._parts.write_summary(summary)
        except StorageError as exc:
            log.error(str(exc))

    def _seconds(self) -> float:
        return self._seconds_before + self._parts.clock.now() - self._started

    def _run(self, worklist: Worklist) -> None:
        while (job := worklist.next_job()) is not None:
            if isinstance(job, TrainJob):
                self._train(job, worklist)
            elif isinstance(job, CloseJob):
                self._close(job)
                worklist.round_done(self.inputs())
            elif isinstance(job, AbandonJob):
                self._go_back()
                worklist.round_done(self.inputs())

    def _train(self, job: TrainJob, worklist: Worklist) -> None:
        started = self._parts.clock.now()
        trainer, metrics, plan = self._parts.trainer, self._parts.metrics, job.plan
        specs = upload_specs(plan, self._parts.model)
        data = memoryview(job.upload.entry.read())
        activations = decode(data[: specs[0].size_bytes], specs[0])
        labels = decode(data[specs[0].size_bytes :], specs[1])
        version = trainer.server_version
        judged = tuple(float(v) for v in trainer.judge(activations, labels).reshape(-1)) if plan.num_probes else None
        loss: float | None = None
        if plan.uploads_at(job.upload.key.local_step):
            losses = trainer.train(activations[: plan.batch_size], labels)
            loss = losses.server
            if losses.skipped:
                metrics.steps_skipped.inc()
                log.warning("a server step was skipped: its loss is not finite", extra={"client": job.upload.key.client_id})
            else:
                self._server_losses.append(losses.server)
            metrics.train_loss.set(losses.server)
            if losses.head is not None:
                metrics.head_loss.set(losses.head)
        metrics.step_seconds.observe(self._parts.clock.now() - started)
        worklist.upload_trained(job.upload, loss, judged, version)

    def _close(self, job: CloseJob) -> None:
        parts = self._parts
        weights = aggregation_weights(list(job.rows), parts.algorithm.weighting)
        if job.plan.trains_front:
            self._average(job, weights)
        statistics = [update.statistics for update in job.updates]
        moments = np.array([s.second_moment for s in statistics], np.float64)
        self.second_moment = merge_second_moments(moments, weights) or self.second_moment
        score = evaluate(parts.trainer.model, parts.eval_source, parts.data) if parts.eval_source else None
        record = RoundRecord(
            round_index=job.round.round_index,
            attempt=job.round.attempt,
            cohort=len(job.cohort),
            updates=len(job.updates),
            test_accuracy=score.accuracy if score else None,
            test_loss=score.loss if score else None,
            local_loss=float(np.mean([s.mean_local_loss for s in statistics])) if job.plan.trains_front else None,
            server_loss=float(np.mean(self._server_losses)) if self._server_losses else None,
            client_forward_passes=sum(s.forward_passes for s in statistics),
            seconds=round(self._parts.clock.now() - job.opened_at, 3),
        )
        self.rounds.append(record)
        self._server_losses.clear()
        self._report(job, record)
        self.save()

    def _average(self, job: CloseJob, weights: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        num_front = sum(p.numel() for p in self._parts.trainer.model.front.parameters())
        flats: list[Float32Array] = []
        for update in job.updates:
            if update.entry is None:
                raise RuntimeError("an update of a round that trains the front has no weights")
            flats.append(np.frombuffer(update.entry.read(), "<f4"))
        mean = weighted_mean(flats, weights)
        self._parts.trainer.set_client_weights(mean[:num_front], mean[num_front:] if job.plan.trains_head else None)

    def _go_back(self) -> None:
        self._server_losses.clear()
        try:
            checkpoint = self._parts.checkpoints.read_newest()
        except (CheckpointError, StorageError) as exc:
            log.warning("the abandoned attempt's server steps stand", extra={"reason": str(exc)})
            return
        if checkpoint.completed_rounds != len(self.rounds):
            log.warning(
                "the abandoned attempt's server steps stand: the last checkpoint is older", extra={"of_round": checkpoint.completed_rounds}
            )
            return
        self._parts.trainer.load_tensors(checkpoint.tensors, int(checkpoint.state["server_version"]))

    def _report(self, job: CloseJob, record: RoundRecord) -> None:
        metrics, statistics = self._parts.metrics, [update.statistics for update in job.updates]
        metrics.rounds_completed.inc()
        metrics.round_seconds.observe(record.seconds)
        if record.test_accuracy is not None and record.test_loss is not None:
            metrics.evaluation_accuracy.set(record.test_accuracy)
            metrics.evaluation_loss.set(record.test_loss)
        if record.local_loss is not None:
            metrics.local_loss.set(record.local_loss)
            metrics.difference_mean.set(float(np.mean([s.difference_mean for s in statistics])))
            metrics.difference_variance.set(float(np.mean([s.difference_variance for s in statistics])))
        metrics.differences_clipped.inc(sum(s.differences_clipped for s in statistics))
        metrics.differences_non_finite.inc(sum(s.differences_non_finite for s in statistics))
        figures = {"test_accuracy": record.test_accuracy, "test_loss": record.test_loss, "server_loss": record.server_loss}
        log.info(
            "round closed",
            extra={
                "round_index": record.round_index,
                "updates": record.updates,
                **{k: v for k, v in figures.items() if v is not None},
                "seconds": record.seconds,
            },
        )
