"""A client's round: h local steps of the plan over flat buffers. A pure function of assignment, shard and client name, and of the answers it waits for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_client.network.upload import Upload, UploadRequest
from heron_client.network.upload_pipeline import SendOutcome, UploadPipeline
from heron_client.training.descent import EXPLODED, DifferenceDescent, ExactDescent
from heron_client.training.parameters import LocalParameters, SentFront
from heron_client.training.passes import LABELS, MASK, Batch, CutGradient, Passes, UploadStream
from heron_client.training.programs import Programs
from heron_client.training.round_meter import RoundMeter
from heron_client.training.runtime import Program
from heron_common.algorithm.payload_shapes import cut_gradient_specs, update_specs, upload_specs
from heron_common.algorithm.plan import Objective, UpdateEncoding
from heron_common.algorithm.trained_tensors import perturbed_tensors
from heron_common.data.batch_order import BatchOrder
from heron_common.numerics.directions import Directions, derive_seed
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import Float32Array, Int64Array, raw_bytes
from heron_common.numerics.update_log import step_directions, weights_digest
from heron_common.numerics.zeroth_order import FiniteDifference, GuardedDerivatives, RunningQuantile, SecondMoment
from heron_common.process.clock import Clock
from heron_common.protocol.messages import Assignment, Submission, UploadPurpose
from heron_common.specification.model_spec import ModelSpec, ProgramKind
from heron_common.specification.text_lengths import of_length

ReadBatch = Callable[[Int64Array, int], tuple[npt.NDArray[Any], npt.NDArray[Any]]]
"""(indices, length of their texts or 0) -> x and y."""


@dataclass(frozen=True)
class HeldOutSamples:
    """What a client keeps from training: samples read by their number from 0, of which at most `max_batches` batches are evaluated in a round.

    `lengths` as in LocalContext.
    """

    read_batch: ReadBatch
    num_examples: int
    _: KW_ONLY
    max_batches: int
    lengths: Int64Array | None = None


@dataclass(frozen=True)
class LocalContext:
    """What stays the same over a client's rounds; `read_batch`, `num_examples` and `lengths` are of the samples that are trained on.

    `lengths` holds the smallest of the run's lengths that holds each sample; None where samples have one shape.
    """

    client_id: str
    run_seed: int
    _: KW_ONLY
    model: ModelSpec
    parameters: LocalParameters
    programs: Programs
    read_batch: ReadBatch
    num_examples: int
    clock: Clock
    held_out: HeldOutSamples | None = None
    lengths: Int64Array | None = None

    def activation_program(self, length: int) -> Program:
        """Return a program that computes activations: every one of these does, and a plan may have only one of them."""
        kind = next(k for k in (ProgramKind.FRONT, ProgramKind.LOSS, ProgramKind.GRADIENT) if k in self.programs.kinds)
        return self.programs.program(kind, length)


class LocalRound:
    """One attempt at one round. `run_step` for 0, 1, ..., then `finish`; theta in `context.parameters` is the result.

    A step that meets a loss or gradient that is not finite, or exploded, is not taken, and none after it: the weights stay the last good ones.
    """

    def __init__(
        self, context: LocalContext, assignment: Assignment, *, sender: UploadPipeline, on_step: Callable[[int, float, float], None]
    ) -> None:
        plan = assignment.plan
        self._context, self._plan, self._assignment = context, plan, assignment
        self._sender = sender
        self._sent = SentFront(context.parameters)
        self._on_step = on_step
        self._order = BatchOrder(
            context.run_seed,
            context.client_id,
            round_reference=assignment.round,
            num_examples=context.num_examples,
            batch_size=plan.batch_size,
            num_steps=plan.local_steps,
            lengths=context.lengths,
        )
        self._trained = context.parameters.theta[: context.parameters.trained_layout(plan.trains_head).num_parameters]
        self._perturbed_layout = FlatLayout(perturbed_tensors(plan, context.model))
        perturbed = self._perturbed_layout.num_parameters
        scales = np.array(assignment.direction_scales, np.float64)
        self._exact = ExactDescent(plan, self._trained[perturbed:]) if plan.takes_gradients else None
        self._inexact = DifferenceDescent(plan, self._trained[:perturbed], scales) if plan.perturbs else None
        self.meter = RoundMeter(SecondMoment.received(assignment.second_moment), RunningQuantile.received(assignment.derivative_quantile))
        self._passes = Passes(plan, context.parameters, scales=scales, meter=self.meter)

    def run_step(self, local_step: int) -> None:
        """Take one local step: base pass (streamed up where the plan says so), perturbed passes or a gradient, step."""
        started = self._context.clock.now()
        drawn = self._order.draw(local_step)
        batch = Batch(*self._context.read_batch(*drawn), drawn.length)
        outcome = self._base_pass(local_step, batch)
        if self._plan.trains_front:
            if not self.meter.diverged:
                self._descend(local_step, batch, outcome)
            if self.meter.diverged:
                self.meter.steps_skipped += 1
            if self._inexact is not None and len(self._inexact.coefficients) == local_step:
                self._inexact.pass_over()
        seconds = self._context.clock.now() - started
        self.meter.step_seconds += seconds
        self._on_step(local_step, self.meter.losses[-1] if self.meter.losses else math.nan, seconds)

    def finish(self) -> None:
        """Wait until the server has answered the last upload."""
        self._sender.settle()

    def submission(self, encoding: UpdateEncoding | None = None) -> Submission:
        """Return what the round made, in the plan's encoding or another."""
        chosen = encoding or self._plan.update_encoding
        specs = update_specs(self._plan, self._context.model, chosen)
        digest = weights_digest(self._trained) if self._plan.trains_front else b""
        if self._inexact is not None and chosen is UpdateEncoding.LOG:
            beside = (self._context.parameters.statistics,) if len(specs) > 1 else ()
            return Submission(chosen, tensors=specs, arrays=(np.stack(self._inexact.coefficients), *beside), weights_sha256=digest)
        parameters = self._context.parameters
        weights = {"client_model": parameters.front, "auxiliary_head": parameters.head, "statistics": parameters.statistics}
        return Submission(UpdateEncoding.DENSE, tensors=specs, arrays=tuple(weights[spec.name] for spec in specs), weights_sha256=digest)

    def _base_pass(self, local_step: int, batch: Batch) -> SendOutcome | None:
        """Run the unperturbed weights where the plan needs them: for the upload, or as one side of the difference, or for the gradient."""
        if self._plan.sends_at(local_step):
            # The upload before may have to be computed again, from its own front.
            self._sender.settle()
            self._sent.begin()
            return self._sender.send(self._request(local_step, batch.length), lambda upload: self._stream(upload, local_step, batch))
        if not self._sender.answered:
            self._sent.before_passes()
        forward = self._plan.perturbs and self._plan.difference is FiniteDifference.FORWARD
        if not self._plan.takes_gradients and not forward:
            return None
        self._context.parameters.show_base()
        program = self._base_program(batch.length)
        losses = self._passes.whole(program, batch, gradient=self._cleared_gradient())
        self._move_statistics(program)
        return SendOutcome(losses, None)

    def _move_statistics(self, program: Program) -> None:
        """Take over the running statistics of a step's base pass; perturbed passes and repeated uploads, which compute them too, leave them alone."""
        moved = program.new_statistics
        if bool(np.isfinite(moved).all()):
            self._context.parameters.statistics[: moved.size] = moved
        else:
            self.meter.diverged = True

    def _base_program(self, length: int) -> Program:
        if self._plan.objective is Objective.AUXILIARY and self._plan.trains_front:
            kind = ProgramKind.GRADIENT if self._plan.takes_gradients else ProgramKind.LOSS
            return self._context.programs.program(kind, length)
        # A front that rests after it diverged may have no program of its own.
        return self._context.activation_program(length)

    def _cleared_gradient(self) -> Float32Array | None:
        if self._exact is None or self._plan.objective is not Objective.AUXILIARY:
            return None
        return self._exact.cleared()

    def _request(self, local_step: int, length: int) -> UploadRequest:
        plan, model = self._plan, of_length(self._context.model, length)
        purpose = UploadPurpose.PROBE if plan.num_probes else UploadPurpose.TRAIN
        specs = upload_specs(plan, model)
        return UploadRequest(
            self._assignment.round,
            purpose,
            local_step=local_step,
            num_probes=plan.num_probes,
            tensors=specs,
            answer_tensors=cut_gradient_specs(plan, model),
        )

    def _stream(self, upload: Upload, local_step: int, batch: Batch) -> Float32Array:
        """Compute and write one upload from the front that its step found; the same call makes the same bytes again for a retry."""
        context = self._context
        self._sent.show()
        noise = derive_seed(
            context.run_seed, context.client_id, round_reference=self._assignment.round, purpose="quantise", index=local_step
        )
        stream = UploadStream(upload, noise)
        gradient = None if upload.repeats else self._cleared_gradient()
        program = self._base_program(batch.length)
        losses = self._passes.whole(program, batch, stream=stream, gradient=gradient)
        if not upload.repeats:
            self._move_statistics(program)
        if self._plan.num_probes:
            directions = self._directions(local_step)
            # Whoever sends probes waits for their answer before theta moves.
            for first, sign in self._perturbations():
                self._passes.perturbed(
                    program, batch, directions=directions, first_direction=first, sign=sign, base=context.parameters.front, stream=stream
                )
        upload.write(LABELS, raw_bytes(batch.y))
        if context.model.context:
            upload.write(MASK, raw_bytes((batch.x >= 0).astype(np.uint8)))
        upload.finish()
        return losses

    def _perturbations(self) -> list[tuple[int, float]]:
        """Return (first direction, sign) of each perturbed pass over the batch, in the order in which the server judges them."""
        signs = (1.0,) if self._plan.difference is FiniteDifference.FORWARD else (1.0, -1.0)
        return [(index * self._plan.direction_groups, sign) for index in range(self._plan.num_directions) for sign in signs]

    def _directions(self, local_step: int) -> Directions:
        context = self._context
        return step_directions(
            context.run_seed,
            context.client_id,
            reference=self._assignment.round,
            local_step=local_step,
            distribution=self._plan.distribution,
            layout=self._perturbed_layout,
        )

    def _descend(self, local_step: int, batch: Batch, outcome: SendOutcome | None) -> None:
        cut_gradient = None
        if self._plan.needs_cut_gradient:
            if outcome is None or outcome.answer is None:
                raise ValueError("a step on gradients at the cut needs the server's answer")
            cut = of_length(self._context.model, batch.length).cut
            cut_gradient = CutGradient(outcome.answer.cut_gradient, self._plan, cut.shape)
        # All is measured at the same weights, before any moves.
        if self._exact is not None:
            self._take_gradient(self._exact, batch, outcome=outcome, cut_gradient=cut_gradient)
        along, guarded = None, None
        if self._inexact is not None:
            along = self._directions(local_step)
            guarded = self._take_differences(self._inexact, batch, outcome=outcome, directions=along, cut_gradient=cut_gradient)
        if self.meter.diverged:
            return
        self._sent.before_move()
        if self._exact is not None:
            self._exact.move()
        if self._inexact is not None and along is not None and guarded is not None:
            self._inexact.move(guarded, along)

    def _take_gradient(self, exact: ExactDescent, batch: Batch, *, outcome: SendOutcome | None, cut_gradient: CutGradient | None) -> None:
        """Let `exact` have the batch's gradient: that of the base pass, or of the pullback of lambda."""
        if cut_gradient is not None:
            self._context.parameters.show_base()
            program = self._context.programs.program(ProgramKind.PULLBACK, batch.length)
            self._passes.whole(program, batch, stream=None, gradient=exact.cleared(), cut_gradient=cut_gradient)
        elif outcome is not None and self._inexact is None:
            self.meter.add_losses(outcome.losses)
            self._note_explosion(outcome.losses)
        exact.judge(self.meter)

    def _take_differences(
        self,
        inexact: DifferenceDescent,
        batch: Batch,
        *,
        outcome: SendOutcome | None,
        directions: Directions,
        cut_gradient: CutGradient | None,
    ) -> GuardedDerivatives:
        """Return the guarded derivatives along the step's directions."""
        plan = self._plan
        base, passes = (
            self._judged(outcome)
            if plan.num_probes
            else self._evaluated(inexact.weights, batch, outcome=outcome, directions=directions, cut_gradient=cut_gradient)
        )
        if plan.difference is FiniteDifference.FORWARD:
            if base is None:
                raise ValueError("a forward difference needs the base losses")
            pairs = [(plus, base) for plus in passes]
        else:
            pairs = list(zip(passes[::2], passes[1::2], strict=True))
        shown = base if base is not None else passes[0]
        if plan.objective is not Objective.CUT_GRADIENT:
            self.meter.add_losses(shown)
        self._note_explosion(shown)
        return inexact.judge(pairs, self.meter)

    def _judged(self, outcome: SendOutcome | None) -> tuple[Float32Array | None, list[Float32Array]]:
        """Return the server's losses of the base and of each perturbed pass."""
        if outcome is None or outcome.answer is None:
            raise ValueError("a step on the server's losses needs the server's answer")
        judged = np.array(outcome.answer.probe_losses, np.float32).reshape(1 + self._plan.num_probes, self._plan.batch_size)
        return judged[0], list(judged[1:])

    def _evaluated(
        self, weights: Float32Array, batch: Batch, *, outcome: SendOutcome | None, directions: Directions, cut_gradient: CutGradient | None
    ) -> tuple[Float32Array | None, list[Float32Array]]:
        """Return this device's own losses of the base, if the plan has them, and of each perturbed pass."""
        kind = ProgramKind.LOSS if cut_gradient is None else ProgramKind.SURROGATE
        program = self._context.programs.program(kind, batch.length)
        base = None if outcome is None else outcome.losses
        if cut_gradient is not None:
            base = None
            if self._plan.difference is FiniteDifference.FORWARD:
                self._context.parameters.show_base()
                base = self._passes.whole(program, batch, cut_gradient=cut_gradient)
        passes = [
            self._passes.perturbed(
                program,
                batch,
                directions=directions,
                first_direction=first,
                sign=sign,
                base=weights,
                stream=None,
                cut_gradient=cut_gradient,
            )
            for first, sign in self._perturbations()
        ]
        return base, passes

    def _note_explosion(self, losses: Float32Array) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            if not abs(float(np.mean(losses, dtype=np.float64))) <= EXPLODED:
                self.meter.diverged = True
