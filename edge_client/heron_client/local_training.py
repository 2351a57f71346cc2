"""A client's round: h local steps of the plan over flat buffers. A pure function of assignment, shard and client name, and of the answers it waits for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from heron_client.optimisers import make_optimiser
from heron_client.parameters import LocalParameters
from heron_client.runtime import Program
from heron_client.sending import StepSender
from heron_client.uploader import Upload, UploadRequest
from heron_common.assignment import Assignment, LocalStatistics, ModelSpec, ProgramKind, UploadAnswer, UploadPurpose, upload_specs
from heron_common.clock import Clock
from heron_common.data.partition import SampleOrder
from heron_common.directions import Directions, derive_seed
from heron_common.plan import Objective
from heron_common.tensors import Float32Array, Float64Array, Int64Array, raw_bytes
from heron_common.zeroth_order import FiniteDifference, SecondMoment, directional_derivatives, guard

ReadBatch = Callable[[Int64Array], tuple[Float32Array, Int64Array]]


@dataclass(frozen=True)
class LocalContext:
    """What stays the same over a client's rounds."""

    client_id: str
    run_seed: int
    model: ModelSpec
    parameters: LocalParameters
    programs: dict[ProgramKind, Program]
    read_batch: ReadBatch
    num_examples: int
    clock: Clock


@dataclass
class RoundMeter:
    """Running sums over a round's differences and losses (Welford for the variance)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    clipped: int = 0
    non_finite: int = 0
    forward_passes: int = 0
    losses: list[float] = field(default_factory=list)

    def add_differences(self, values: Float64Array) -> None:
        """Account for the guarded derivatives of one step."""
        for value in values:
            self.count += 1
            delta = float(value) - self.mean
            self.mean += delta / self.count
            self.squares += delta * (float(value) - self.mean)

    def add_losses(self, losses: Float32Array) -> None:
        """Account for the finite losses of one step; the others are counted with the differences that they make."""
        finite = losses[np.isfinite(losses)]
        if finite.size:
            self.losses.append(float(np.mean(finite, dtype=np.float64)))

    def to_statistics(self, second_moment: float, step_seconds: float, wait_seconds: float, peak_memory_bytes: int) -> LocalStatistics:
        """Return what the client reports of the round."""
        return LocalStatistics(
            second_moment=second_moment,
            mean_local_loss=float(np.mean(self.losses)) if self.losses else 0.0,
            forward_passes=self.forward_passes,
            differences=self.count,
            difference_mean=self.mean,
            difference_variance=self.squares / self.count if self.count else 0.0,
            differences_clipped=self.clipped,
            differences_non_finite=self.non_finite,
            step_seconds=step_seconds,
            upload_wait_seconds=wait_seconds,
            peak_memory_bytes=peak_memory_bytes,
        )


class LocalRound:
    """One attempt at one round. `run_step` for 0, 1, ..., then `finish`; theta in `context.parameters` is the result."""

    def __init__(
        self, context: LocalContext, assignment: Assignment, sender: StepSender, on_step: Callable[[int, float, float], None]
    ) -> None:
        plan = assignment.plan
        self._context = context
        self._plan = plan
        self._assignment = assignment
        self._sender = sender
        self._on_step = on_step
        self._order = SampleOrder(context.run_seed, context.client_id, assignment.round, context.num_examples, plan.batch_size)
        self._layout = context.parameters.trained_layout(plan.trains_head)
        self._trained = context.parameters.theta[: self._layout.num_parameters]
        self._scales = np.array(assignment.direction_scales, np.float64)
        self._optimiser = make_optimiser(plan, self._layout.num_parameters) if plan.trains_front else None
        self._program = context.programs[ProgramKind.LOSS if plan.needs_head else ProgramKind.FRONT]
        self._specs = upload_specs(plan, context.model)
        self.second_moment = SecondMoment.received(assignment.second_moment)
        self.meter = RoundMeter()
        self.step_seconds = 0.0

    def run_step(self, local_step: int) -> None:
        """Take one local step: base pass (streamed up where the plan says so), perturbed passes, step."""
        started = self._context.clock.now()
        x, y = self._context.read_batch(self._order.indices(local_step))
        sends = self._plan.sends_at(local_step)
        # A difference of losses needs the base pass; so does an upload. Nothing else does.
        central = self._plan.difference is FiniteDifference.CENTRAL
        base_losses: Float32Array | None = None
        answer: UploadAnswer | None = None
        if sends:
            front = self._context.parameters.front.copy()
            outcome = self._sender.send(self._request(local_step), lambda upload: self._stream(upload, local_step, front, x, y))
            base_losses, answer = outcome.losses, outcome.answer
        elif not central:
            self._context.parameters.show_base()
            base_losses = self._forward(None, x, y)
        if self._plan.trains_front:
            self._descend(local_step, x, y, base_losses, answer)
        seconds = self._context.clock.now() - started
        self.step_seconds += seconds
        self._on_step(local_step, self.meter.losses[-1] if self.meter.losses else math.nan, seconds)

    def finish(self) -> None:
        """Wait until the server has answered the last upload."""
        self._sender.settle()

    def _request(self, local_step: int) -> UploadRequest:
        purpose = UploadPurpose.PROBE if self._plan.num_probes else UploadPurpose.TRAIN
        return UploadRequest(self._assignment.round, purpose, local_step, self._plan.num_probes, self._specs)

    def _stream(self, upload: Upload, local_step: int, front: Float32Array, x: Float32Array, y: Int64Array) -> Float32Array:
        """Compute and write one upload from a snapshot of the step's front; the same call makes the same bytes again for a retry."""
        parameters = self._context.parameters
        parameters.show_base()
        parameters.show_front(front)
        losses = self._forward(upload, x, y)
        if self._plan.num_probes:
            directions = self._directions(local_step)
            signs = (1.0,) if self._plan.difference is FiniteDifference.FORWARD else (1.0, -1.0)
            for sign in signs:
                self._forward_perturbed(upload, directions, sign, front, x, y)
        upload.write(1, raw_bytes(y))
        upload.finish()
        return losses

    def _descend(self, local_step: int, x: Float32Array, y: Int64Array, base: Float32Array | None, answer: UploadAnswer | None) -> None:
        plan = self._plan
        directions = self._directions(local_step)
        if plan.objective is Objective.SERVER:
            if answer is None:
                raise ValueError("a step on the server's losses needs the server's answer")
            judged = np.array(answer.probe_losses, np.float32).reshape(1 + plan.num_probes, plan.batch_size)
            base, plus, minus = judged[0], judged[1], judged[-1]
        else:
            plus = self._forward_perturbed(None, directions, 1.0, self._trained, x, y)
            minus = plus
            if plan.difference is FiniteDifference.CENTRAL:
                minus = self._forward_perturbed(None, directions, -1.0, self._trained, x, y)
        if plan.difference is FiniteDifference.FORWARD:
            if base is None:
                raise ValueError("a forward difference needs the base losses")
            minus = base
        self.meter.add_losses(base if base is not None else plus)
        derivatives = directional_derivatives(plus, minus, plan.direction_groups, plan.smoothing_radius, plan.difference)
        guarded = guard(derivatives, self.second_moment, plan.clip_factor)
        self.second_moment = guarded.second_moment
        self.meter.clipped += guarded.num_clipped
        self.meter.non_finite += guarded.num_non_finite
        self.meter.add_differences(guarded.values)
        if self._optimiser is not None:
            self._optimiser.step(self._trained, guarded, directions, self._scales)

    def _directions(self, local_step: int) -> Directions:
        context = self._context
        seed = derive_seed(context.run_seed, context.client_id, self._assignment.round, "direction", local_step)
        return Directions(seed, self._plan.distribution, self._layout)

    def _forward(self, upload: Upload | None, x: Float32Array, y: Int64Array) -> Float32Array:
        """Run the program over the whole batch with the weights now in the working buffer; return [B] losses (zeros for a front)."""
        losses = np.zeros(len(x), np.float32)
        self._forward_rows(upload, slice(0, len(x)), x, y, losses)
        return losses

    def _forward_perturbed(
        self, upload: Upload | None, directions: Directions, sign: float, base: Float32Array, x: Float32Array, y: Int64Array
    ) -> Float32Array:
        """Run every group with its own direction from `base`; return [B] losses (zeros for a front)."""
        losses = np.zeros(len(x), np.float32)
        working = self._context.parameters.working[: self._layout.num_parameters]
        magnitudes = sign * self._plan.smoothing_radius * self._scales
        for group in range(self._plan.direction_groups):
            directions.add(group, magnitudes, base, working)
            rows = slice(group * self._plan.group_size, (group + 1) * self._plan.group_size)
            self._forward_rows(upload, rows, x, y, losses)
        return losses

    def _forward_rows(self, upload: Upload | None, rows: slice, x: Float32Array, y: Int64Array, losses: Float32Array) -> None:
        for start in range(rows.start, rows.stop, self._plan.micro_batch):
            part = slice(start, start + self._plan.micro_batch)
            self._program.run(x[part], y[part])
            if self._program.kind is ProgramKind.LOSS:
                losses[part] = self._program.losses
            if upload is not None:
                upload.write(0, raw_bytes(self._program.activations))
        if upload is None or not upload.repeats:
            self.meter.forward_passes += rows.stop - rows.start
