"""Complete a plan, compile its programs, prove them, and hand them over as content-addressed blobs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from dataclasses import dataclass

import numpy as np
import torch

from heron_common.algorithm.algorithm import Algorithm, DirectionScale
from heron_common.algorithm.plan import Plan, UpdateEncoding
from heron_common.algorithm.plan_checks import algorithm_mistakes, can_log, statistics_mistakes
from heron_common.algorithm.plan_counts import prefers_log
from heron_common.algorithm.trained_tensors import perturbed_tensors, trained_tensors
from heron_common.errors import ConfigurationError
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import Float64Array, TensorSpec
from heron_common.numerics.zeroth_order import global_scales, tensor_scales
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramKind, ProgramReference
from heron_server.models.split_model import SplitModel, flat_parameters
from heron_server.programs.backward_cost import backward_equivalents
from heron_server.programs.compile import compile_function
from heron_server.programs.cost import ClientCost, choose_direction_groups, choose_micro_batch, client_cost
from heron_server.programs.difference_gate import MeasureCost, MeasureDifference, check_difference, difference_error, fitting_radius
from heron_server.programs.export import ProgramCache
from heron_server.programs.parity import ParityReport, check_outputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedProgram:
    """A proved program: its reference for clients and its bytes."""

    reference: ProgramReference
    data: bytes


def complete_algorithm(algorithm: Algorithm, model: SplitModel, count: MeasureCost = client_cost) -> tuple[Algorithm, ClientCost]:
    """Fill in direction groups and micro-batch from counts, then check the whole.

    Raises:
        ConfigurationError: the algorithm contradicts itself; all mistakes at once.

    """
    plan = algorithm.plan
    cost = count(model, plan.needs_head)
    if model.batch_statistics:
        # The statistics are those of the whole batch: a group or micro-batch less than that would be another model.
        plan = dataclasses.replace(
            plan, direction_groups=plan.direction_groups or 1, micro_batch=plan.micro_batch or max(1, plan.batch_size)
        )
    if plan.direction_groups == 0:
        groups = choose_direction_groups(plan.batch_size, _dimension(model, plan), cost.forward_flops) if plan.batch_size > 0 else 1
        plan = dataclasses.replace(plan, direction_groups=groups)
    if plan.micro_batch == 0:
        copied = _joint_dimension(model) if takes_directions(model) else None
        plan = dataclasses.replace(plan, micro_batch=choose_micro_batch(plan, cost.activation_bytes, copied))
    again = cost.recomputed_share if plan.takes_gradients else 0.0
    plan = dataclasses.replace(plan, backward_equivalents=backward_equivalents(algorithm, model) + again)
    plan = dataclasses.replace(plan, learning_rate=min(plan.learning_rate, algorithm.rate_at_most(max(1, _dimension(model, plan)))))
    if plan.update_encoding is UpdateEncoding.AUTO:
        logs = can_log(plan) and prefers_log(plan, model.to_spec())
        plan = dataclasses.replace(plan, update_encoding=UpdateEncoding.LOG if logs else UpdateEncoding.DENSE)
    completed = dataclasses.replace(algorithm, plan=plan)
    mistakes = algorithm_mistakes(completed) + statistics_mistakes(plan, model.to_spec())
    if plan.trains_front and not model.to_spec().client_model:
        mistakes = [
            *mistakes,
            f"preset {plan.preset!r} trains the front, but every weight of it is frozen: choose an adapter or preset frozen",
        ]
    if mistakes:
        raise ConfigurationError("the plan cannot run: " + "; ".join(mistakes))
    return completed, cost


def takes_directions(model: SplitModel) -> bool:
    """Whether one run of a program may take several directions: torch can map the client's part over weights, and samples are numbers of one shape.

    Our own families of numbers can be mapped, a user's module is tried. Of tokens the runs are long and the calls few, and what maps attention over weights copies much of it.
    """
    if model.tokens or model.batch_statistics or not model.to_spec().client_model:
        return False
    if not model.code_digest:
        return True
    function = compile_function(model, ProgramKind.LOSS, micro_batch=2, directions=2)
    try:
        with torch.no_grad():
            function.module(*function.arguments)
    except Exception as exc:
        log.info(
            "programs take one direction a run: the model cannot be mapped over its weights", extra={"reason": str(exc).splitlines()[0]}
        )
        return False
    return True


def needed_programs(algorithm: Algorithm) -> tuple[ProgramKind, ...]:
    """Return which programs a client needs over the whole run; warm-up rounds need the front alone."""
    plan = algorithm.plan
    if plan.needs_head:
        descent = ((ProgramKind.GRADIENT,) if plan.takes_gradients else ()) + ((ProgramKind.LOSS,) if plan.perturbs else ())
        return (*descent, ProgramKind.FRONT) if algorithm.warmup_rounds else descent
    if plan.needs_cut_gradient:
        return (ProgramKind.FRONT, ProgramKind.PULLBACK if plan.takes_gradients else ProgramKind.SURROGATE)
    return (ProgramKind.FRONT,)


def fit_smoothing_radius(
    algorithm: Algorithm, model: SplitModel, *, cache: ProgramCache, seed: int, measure: MeasureDifference = difference_error
) -> Algorithm:
    """Return the completed algorithm with a smoothing radius that passes the gate on this model: the preset's, or the power of two of it that is nearest.

    Raises:
        ProgramError: the program cannot be exported.
        ParityError: no radius passes.

    """
    plan = algorithm.plan
    if plan.judged_program is None:
        return algorithm
    program = cache.program(model, plan.judged_program, micro_batch=plan.micro_batch, directions=plan.directions_per_run)
    radius = fitting_radius(model, plan, program=program, scales=scales_of(model, algorithm), seed=seed, measure=measure)
    if radius != plan.smoothing_radius:
        log.info("smoothing radius fitted to the model", extra={"preset_radius": plan.smoothing_radius, "smoothing_radius": radius})
    return dataclasses.replace(algorithm, plan=dataclasses.replace(plan, smoothing_radius=radius))


def publish(
    algorithm: Algorithm, model: SplitModel, *, cache: ProgramCache, seed: int, measure: MeasureDifference = difference_error
) -> tuple[list[PublishedProgram], ParityReport]:
    """Compile and prove every program of a completed algorithm, at each of the model's lengths, on the model's present weights.

    The finite difference is compared at the greatest length, where the smoothing radius was fitted.

    Raises:
        ProgramError: a program cannot be exported.
        ParityError: a program or the plan's finite difference differs from the model; nothing is published.

    """
    plan = algorithm.plan
    published: list[PublishedProgram] = []
    worst, difference = 0.0, None
    lengths = model.lengths or (0,)
    for length, kind in itertools.product(lengths, needed_programs(algorithm)):
        shortened = model.of_length(length)
        directions = plan.directions_per_run if kind is plan.judged_program else 1
        data = cache.program(shortened, kind, micro_batch=plan.micro_batch, directions=directions)
        worst = max(worst, check_outputs(shortened, kind, program=data, micro_batch=plan.micro_batch, seed=seed, directions=directions))
        if kind is plan.judged_program and length == lengths[-1]:
            difference = check_difference(model, plan, program=data, scales=scales_of(model, algorithm), seed=seed, measure=measure)
        blob = BlobReference(hashlib.sha256(data).hexdigest(), len(data))
        published.append(
            PublishedProgram(ProgramReference(kind, blob, micro_batch=plan.micro_batch, length=length, directions=directions), data)
        )
    report = ParityReport(worst, difference)
    log.info("programs proved equal to the model", extra={"output_error": worst, "difference_error": difference})
    return published, report


def scales_of(model: SplitModel, algorithm: Algorithm) -> Float64Array:
    """Return the scale s_t of each tensor that is perturbed, or would be, for the model's present weights: for the gate, and for a whole run where these are its first."""
    spec = model.to_spec()
    flat = np.concatenate([flat_parameters(model.front), flat_parameters(model.auxiliary_head)])
    tensors = FlatLayout(spec.client_model + spec.auxiliary_head).views(flat)[: len(_scaled(algorithm.plan, spec))]
    if algorithm.direction_scale is DirectionScale.UNIT:
        return np.ones(len(tensors), np.float64)
    if algorithm.direction_scale is DirectionScale.TENSOR_RMS:
        return tensor_scales(tensors, algorithm.scale_floor)
    return global_scales(tensors, algorithm.scale_floor)


def scales_in_round(anchor: Float64Array, spec: ModelSpec, *, algorithm: Algorithm, round_index: int) -> Float64Array:
    """Return the scales of one round: those of the run's first weights, and zero for layers whose turn it is not.

    Scales that follow the present weights feed back: weights that grow make steps that grow.
    """
    if algorithm.direction_scale is not DirectionScale.BLOCK_RMS:
        return anchor
    specs = _scaled(algorithm.plan, spec)
    # A front's layers are its direct children, named before the first dot; a head's names follow them in the same order.
    layers = [(index >= len(spec.client_model), tensor.name.partition(".")[0]) for index, tensor in enumerate(specs)]
    order = list(dict.fromkeys(layers))
    return np.where([layer == order[round_index % len(order)] for layer in layers], anchor, 0.0)


def _joint_dimension(model: SplitModel) -> int:
    spec = model.to_spec()
    return FlatLayout(spec.client_model + spec.auxiliary_head).num_parameters


def _dimension(model: SplitModel, plan: Plan) -> int:
    return FlatLayout(_scaled(plan, model.to_spec())).num_parameters


def _scaled(plan: Plan, spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors that have a scale: those that are perturbed, or all that are trained where none are."""
    return perturbed_tensors(plan, spec) if plan.perturbs else trained_tensors(plan, spec)
