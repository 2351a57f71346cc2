"""The one thread that touches the model: trains on uploads in their order, closes rounds, writes checkpoints and the summary."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from heron_common.data.reading import SampleReader
from heron_common.errors import CheckpointError, StorageError
from heron_common.ids import RoundReference
from heron_common.process.clock import Clock
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.protocol.messages import LocalStatistics
from heron_common.protocol.reported_ranges import known_figure
from heron_common.specification.data_specification import Task
from heron_server.metrics import ServerMetrics
from heron_server.programs.publish import scales_in_round, scales_of
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.jobs import AbandonJob, CloseJob, RoundInputs, SaveJob, ScoreJob, TrainJob
from heron_server.rounds.reported import combined
from heron_server.rounds.trainer_queue import TrainerQueue
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore
from heron_server.storage.ledger import Ledger
from heron_server.summary import RoundRecord, round_rows, skipped_round
from heron_server.training.aggregation import aggregation_weights
from heron_server.training.alignment import HeadAlignment
from heron_server.training.best_checkpoint import BestCheckpoint
from heron_server.training.early_end import EarlyEnd
from heron_server.training.evaluation import evaluate
from heron_server.training.event_files import EventFiles
from heron_server.training.fronts import FrontAverage
from heron_server.training.gatekeeping import Gatekeeper
from heron_server.training.held_out_score import HeldOutScore
from heron_server.training.job_thread import JobThread
from heron_server.training.open_round import InsideRound, open_round_state, open_round_tensors, restore_open_round
from heron_server.training.recovery import Recovery
from heron_server.training.round_report import report_round, round_record, warn_at_chance
from heron_server.training.stepping import Stepper
from heron_server.training.tallies import RunTallies
from heron_server.training.trainer import Trainer

log = logging.getLogger(__name__)


class TrainWorker(JobThread):
    """Runs jobs until there are none left. `state` survives in checkpoints; `failure` tells why it died, if it did."""

    def __init__(
        self,
        *,
        trainer: Trainer,
        facts: RunFacts,
        gatekeeper: Gatekeeper,
        alignment: HeadAlignment | None,
        stepper: Stepper,
        held_out: HeldOutScore,
        tallies: RunTallies,
        best: BestCheckpoint,
        fronts: FrontAverage,
        ending: EarlyEnd,
        checkpoints: CheckpointStore,
        ledger: Ledger,
        metrics: ServerMetrics,
        clock: Clock,
        eval_source: SampleReader | None,
        event_files: EventFiles | None,
        client_table: Callable[[], dict[str, Any]],
        write_summary: Callable[[dict[str, Any]], None],
        summary_facts: dict[str, Any],
    ) -> None:
        """`alignment` only where clients have heads of their own, `eval_source` and `event_files` where they were asked for."""
        super().__init__()
        self._facts, self._trainer = facts, trainer
        self._gatekeeper, self._alignment = gatekeeper, alignment
        self._stepper, self._held_out, self._tallies, self._best, self._fronts = stepper, held_out, tallies, best, fronts
        self._ending = ending
        self._checkpoints, self._ledger, self._metrics, self._clock = checkpoints, ledger, metrics, clock
        self._eval_source, self._event_files = eval_source, event_files
        self._client_table, self._write_summary = client_table, write_summary
        self._summary_facts = summary_facts
        self._started = self._clock.now()
        self._seconds_before = 0.0
        self.rounds: list[RoundRecord] = []
        self.second_moment = 0.0
        self.derivative_quantile = 0.0
        self._scales = scales_of(trainer.model, facts.algorithm)
        """Of the run's first weights, which the model has until a checkpoint is restored; directions keep them over the whole run."""
        self.diverged_round: int | None = None
        self.checkpoint_failed = False
        self._unwritten: Checkpoint | None = None
        """The present boundary, where the disk refused its checkpoint: a copy to go back to."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a round boundary."""
        state = checkpoint.state
        self._load_tensors(checkpoint, int(state["server_version"]))
        self._take_up_figures(state)
        if "first_scales" in state:
            self._scales = np.array(state["first_scales"], np.float64)
        else:
            # Of version 0.1, whose scales followed the weights: the seed has made the first weights again.
            log.warning(
                "the checkpoint is of a version whose direction scales followed the weights: from here on they are those of the first weights"
            )
        self.diverged_round = state["diverged_round"]
        self._metrics.diverged.set(self.diverged_round is not None)
        self.rounds = [RoundRecord(**row) for row in state["rounds"]]
        self._seconds_before = float(state["seconds"])
        # Checkpoints of versions without gates have none.
        self._gatekeeper.restore(state.get("gates"))
        self._tallies.restore(state.get("tallies"))
        self._best.known = Recovery.of(state.get("recovery"))
        self._ending = self._ending.restored(state.get("ending"))

    def restore_inside_round(self, checkpoint: Checkpoint) -> InsideRound:
        """Go on inside a round, from a checkpoint that was taken there, and return what the round started from."""
        self.restore(checkpoint)
        self._stepper.server_losses = [float("nan") if loss is None else float(loss) for loss in checkpoint.state["server_losses"]]
        self._held_out.restore(checkpoint.state["held_out"])
        return restore_open_round(self._trainer, self._alignment, tensors=checkpoint.tensors, state=checkpoint.state["open_round"])

    def inputs(self) -> RoundInputs:
        """Return what the next round starts from."""
        front, head = self._trainer.client_weights()
        scales = scales_in_round(self._scales, self._facts.model, algorithm=self._facts.algorithm, round_index=len(self.rounds))
        heads = self._alignment.heads if self._alignment is not None else {}
        return RoundInputs(
            front.tobytes(),
            head.tobytes(),
            scales=tuple(float(s) for s in scales),
            second_moment=self.second_moment,
            derivative_quantile=self.derivative_quantile,
            heads={client: own.tobytes() for client, own in heads.items()},
            rests=self.diverged_round is not None,
            statistics=self._trainer.statistics().tobytes(),
            set_apart=self._gatekeeper.set_apart(len(self.rounds)),
            step_factor=self._best.known.step_factor,
            ends_because=self.ends_because,
        )

    @property
    def ends_because(self) -> str:
        """Why the run ends before its last round; empty while it goes on, as it does until the disk takes a checkpoint that says so."""
        return "" if self.checkpoint_failed else self._ending.because

    def save(self) -> bool:
        """Write a checkpoint of the present round boundary and the summary; a full disk is logged, counted and remembered. Returns whether it is written."""
        checkpoint = Checkpoint(len(self.rounds), self._tensors(), self._state())
        written = self._try_to_save(lambda: self._checkpoints.write(checkpoint, self._best.known.best_round))
        self._unwritten = None if written else copy.deepcopy(checkpoint)
        self.write_summary()
        return written

    def _save_inside_round(self, job: SaveJob) -> bool:
        state = {
            **self._state(),
            "server_losses": self._stepper.server_losses,
            "held_out": self._held_out.state(),
            "open_round": open_round_state(job),
        }
        tensors = self._tensors() | open_round_tensors(self._trainer, self._alignment, job.inputs)
        written = self._try_to_save(lambda: self._checkpoints.write_open(Checkpoint(len(self.rounds), tensors, state), job.positions))
        log.info("checkpoint inside the round", extra={"round_index": job.round.round_index, "uploads": job.positions, "written": written})
        crash_point(CrashPoint.OPEN_ROUND_SAVED)
        return written

    def _state(self) -> dict[str, Any]:
        return {
            "server_version": self._trainer.server_version,
            "second_moment": self.second_moment,
            "derivative_quantile": self.derivative_quantile,
            "first_scales": self._scales.tolist(),
            "diverged_round": self.diverged_round,
            "rounds": round_rows(self.rounds),
            "clients": self._client_table(),
            "seconds": self._seconds(),
            "gates": self._gatekeeper.state(),
            "tallies": self._tallies.state(),
            "recovery": self._best.known.state(),
            "ending": self._ending.state(),
        }

    def _try_to_save(self, write: Callable[[], object]) -> bool:
        try:
            # A checkpoint that knew of an upload which the ledger forgot in a crash would see it trained twice.
            self._ledger.sync()
            write()
            self.checkpoint_failed = False
        except StorageError as exc:
            self.checkpoint_failed = True
            self._metrics.checkpoint_failures.inc()
            log.error(str(exc))
        return not self.checkpoint_failed

    def write_summary(self) -> None:
        """Replace the summary; a full disk is logged."""
        try:
            self._write_summary(self.summary())
            crash_point(CrashPoint.SUMMARY_WRITTEN)
        except StorageError as exc:
            log.error(str(exc))

    def summary(self) -> dict[str, Any]:
        """Return what the run did so far, as one document."""
        return {
            **self._summary_facts,
            **self._tallies.summary(),
            **self._best.summary(),
            "rounds_completed": len(self.rounds),
            "rounds": round_rows(self.rounds),
            "ended_because": None if self.checkpoint_failed else self._ending.reason(len(self.rounds)),
            "seconds": round(self._seconds(), 3),
            "diverged_round": self.diverged_round,
            "rejected_uploads": self._gatekeeper.report(),
            "checkpoint": str(self._checkpoints.path_of(len(self.rounds))),
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        heads = self._alignment.heads if self._alignment is not None else {}
        return self._trainer.tensors() | {f"aligned_head.{client}": torch.from_numpy(own) for client, own in heads.items()}

    def _load_tensors(self, checkpoint: Checkpoint, server_version: int) -> None:
        self._trainer.load_tensors(checkpoint.tensors, server_version)
        if self._alignment is not None:
            prefix = "aligned_head."
            own = {name[len(prefix) :]: value.numpy() for name, value in checkpoint.tensors.items() if name.startswith(prefix)}
            self._alignment.heads = own
            self._alignment.forget()

    def _seconds(self) -> float:
        return self._seconds_before + self._clock.now() - self._started

    def _run(self, queue: TrainerQueue) -> None:
        while (job := queue.next_job()) is not None:
            if isinstance(job, TrainJob):
                self._stepper.run(job, queue)
            elif isinstance(job, ScoreJob):
                self._held_out.run(job, queue)
            elif isinstance(job, SaveJob):
                queue.open_round_saved(self._save_inside_round(job))
            elif isinstance(job, CloseJob):
                covered = self._close(job)
                queue.round_done(self.inputs(), covered)
                crash_point(CrashPoint.CHECKPOINT_SETTLED)
            elif isinstance(job, AbandonJob):
                is_refused = 2 * self._gatekeeper.num_refused_clients >= max(1, job.num_members)
                hopeless = is_refused and not self._stepper.server_losses
                self.go_back()
                crash_point(CrashPoint.WENT_BACK)
                went_back = self._best.after_attempt(len(self.rounds), hopeless, self._return_to)
                if went_back is False:
                    self._let_fronts_rest(
                        job.round.round_index, "no upload of the latest attempts could be trained on: fronts rest from now on"
                    )
                covered = self.skip_round(job.round, job.num_members) if job.skips else went_back is not None and self.save()
                queue.round_done(self.inputs(), covered)
            self._metrics.trainer_processor_seconds.set(time.thread_time())

    def _ended(self) -> None:
        if self._event_files is not None:
            self._event_files.close()

    def _close(self, job: CloseJob) -> bool:
        weights = aggregation_weights(self._counted_rows(job), self._facts.algorithm.weighting)
        self._fronts.take_over(job, weights)
        crash_point(CrashPoint.ROUND_AVERAGED)
        self._trainer.close_round([update.client_id for update in job.updates], weights)
        if self._alignment is not None:
            if self._alignment.is_due(job.round.round_index):
                self._alignment.align()
            self._alignment.forget()
        statistics = [update.statistics for update in job.updates]
        if job.plan.trains_front:
            self._merge(statistics)
        self._watch_divergence(job, statistics)
        score = evaluate(self._trainer.model, self._eval_source) if self._eval_source else None
        seconds = round(self._clock.now() - job.opened_at, 3)
        measured = {**self._tallies.close_round(job, seconds), **self._held_out.figures(job.round.round_index)}
        record = round_record(job, score, server_losses=self._stepper.server_losses, seconds=seconds, measured=measured)
        self._add(record)
        report_round(self._metrics, job, rounds=self.rounds, num_rounds=self._summary_facts["num_rounds"])
        went_back = self._best.after_round(len(self.rounds), record.server_loss, self._return_to)
        self._gatekeeper.round_closed(len(self.rounds))
        self._stepper.server_losses.clear()
        self._held_out.forget()
        if self._trainer.model.task is Task.CLASSIFICATION and not went_back:
            warn_at_chance(self.rounds, self._trainer.model.num_classes)
        if self._event_files is not None:
            self._event_files.write(record)
        crash_point(CrashPoint.ROUND_EVALUATED)
        return self.save()

    def _return_to(self, checkpoint: Checkpoint) -> None:
        """Take over front, head, back, moments and running figures of a checkpoint; rounds, steps and what is known of clients go on from here."""
        self._load_tensors(checkpoint, self._trainer.server_version)
        self._take_up_figures(checkpoint.state)

    def _take_up_figures(self, state: dict[str, Any]) -> None:
        self.second_moment = known_figure("second_moment", state["second_moment"])
        self.derivative_quantile = known_figure("derivative_quantile", state["derivative_quantile"])

    def _counted_rows(self, job: CloseJob) -> list[int]:
        counted = self._gatekeeper.counted_rows
        return [counted(u.client_id, rows, job.plan.batch_size) for u, rows in zip(job.updates, job.rows, strict=True)]

    def _merge(self, statistics: list[LocalStatistics]) -> None:
        self.second_moment = combined("second_moment", [s.second_moment for s in statistics], self.second_moment)
        quantiles = [s.derivative_quantile for s in statistics]
        self.derivative_quantile = combined("derivative_quantile", quantiles, self.derivative_quantile)

    def _watch_divergence(self, job: CloseJob, statistics: list[LocalStatistics]) -> None:
        """Let fronts rest from the next round on once most clients of a round met losses or gradients that are not finite."""
        count = sum(s.diverged for s in statistics)
        self._metrics.diverged_clients.inc(count)
        if 2 * count > len(statistics):
            said = f"training of the front diverged and rests from now on with its last finite weights: lower {self._facts.algorithm.plan.step_option}"
            self._let_fronts_rest(job.round.round_index, said)

    def _let_fronts_rest(self, round_index: int, said: str) -> None:
        if self.diverged_round is None:
            self.diverged_round = round_index
            self._metrics.diverged.set(1)
            log.error(said, extra={"round_index": round_index})

    def skip_round(self, reference: RoundReference, num_members: int) -> bool:
        """Count a round as done that brought no update; returns whether a checkpoint says so."""
        self._add(skipped_round(reference, num_members))
        return self.save()

    def _add(self, record: RoundRecord) -> None:
        self.rounds.append(record)
        self._ending = self._ending.after_round(self.rounds)

    def go_back(self) -> None:
        """Undo what the open round has trained, if a checkpoint of its beginning is there; says so if not."""
        self._stepper.server_losses.clear()
        self._held_out.forget()
        try:
            checkpoint = self._unwritten or self._checkpoints.read_newest()
        except (CheckpointError, StorageError) as exc:
            log.warning("the abandoned attempt's server steps stand", extra={"reason": str(exc)})
            return
        if checkpoint.completed_rounds != len(self.rounds):
            log.warning(
                "the abandoned attempt's server steps stand: the last checkpoint is older", extra={"of_round": checkpoint.completed_rounds}
            )
            return
        self._load_tensors(checkpoint, int(checkpoint.state["server_version"]))
        self._gatekeeper.restore(checkpoint.state.get("gates"))
        if self._unwritten is not None:
            # None was taken inside this attempt; one inside the round before may be there, which that round still needs.
            return
        try:
            self._checkpoints.drop_open()
        except OSError as exc:
            log.warning("the checkpoint inside the abandoned attempt could not be removed", extra={"reason": str(exc)})
