"""Every mistake in a plan or an algorithm, all at once, each with the two fields that contradict each other and the remedy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from heron_common.algorithm.algorithm import NO_WEIGHTS, Algorithm, LocalLosses, ServerSchedule
from heron_common.algorithm.plan import ClientOptimiser, Estimator, HeadTraining, Objective, Plan, UpdateEncoding
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.options import option_fields, option_of
from heron_common.specification.model_spec import HEAD_STATISTICS, ModelSpec

_REPLAYED = {ClientOptimiser.SGD, ClientOptimiser.SCALAR_ADAPTIVE}
"""Optimisers whose step is a sum of directions, so that a list of coefficients is the whole step."""

MAX_COUNT = 1_000_000
"""Of steps, samples, groups and directions: a client that is told more has been told nonsense, and would be at it for ever."""


def plan_mistakes(plan: Plan) -> list[str]:
    """Return every mistake in a complete plan, each one sentence with what to write instead; empty if there is none."""
    ranges = {name: sentence for name, field in option_fields(Plan).items() if (sentence := _range_mistake(name, field, plan))}
    mistakes = list(ranges.values())
    if not 0 <= plan.backward_equivalents < math.inf:
        mistakes.append(f"backward_equivalents must be at least 0 and finite, not {plan.backward_equivalents}: update the server")
    return mistakes + _size_mistakes(plan, set(ranges)) + _objective_mistakes(plan) + _hybrid_mistakes(plan) + _encoding_mistakes(plan)


def _range_mistake(name: str, field: dataclasses.Field[Any], plan: Plan) -> str:
    """Return what is wrong with a number by what its option declares; empty if nothing is."""
    bounds, value = option_of(field), getattr(plan, field.name)
    if name == "relative_step" and not plan.steps_relatively:
        return ""
    if bounds.above is not None and not bounds.above < value < math.inf:
        return f"{name} must be a positive finite number, not {value}: give one, or leave it to the preset"
    if bounds.above is not None and bounds.at_most is not None and value > bounds.at_most:
        return f"{name} must be at most {bounds.at_most:g}, not {value}: give such a number, or leave it to the preset"
    if bounds.at_least is None:
        return ""
    if isinstance(value, int):
        in_range, limit = bounds.at_least <= value <= MAX_COUNT, f"at most {MAX_COUNT}"
    else:
        most = math.inf if bounds.below is None else bounds.below
        in_range, limit = bounds.at_least <= value < most, f"below {most:g}"
    return "" if in_range else f"{name} must be at least {bounds.at_least:g} and {limit}, not {value}: give such a number"


def step_mistakes(plan: Plan, given: Collection[str]) -> list[str]:
    """Return which of the options that somebody gave say how long a step is and are not what this plan's steps are measured by."""
    if plan.steps_relatively and not plan.takes_gradients and "client_learning_rate" in given:
        sentence = (
            f"client_learning_rate is no part of client_optimiser=scalar_adaptive (preset {plan.preset!r}), whose steps are a share of the weights' own length: "
            "leave it out or give relative_step, or set client_optimiser to sgd, momentum, adam or adamw"
        )
        return [sentence]
    if not plan.steps_relatively and "relative_step" in given:
        sentence = (
            f"relative_step is of client_optimiser=scalar_adaptive and estimator=hybrid, but preset {plan.preset!r} here steps by {plan.optimiser.value} "
            f"with estimator={plan.estimator.value}: give client_learning_rate instead"
        )
        return [sentence]
    return []


def _size_mistakes(plan: Plan, wrong: set[str]) -> list[str]:
    mistakes: list[str] = []
    if not wrong & {"upload_interval", "local_steps"} and plan.upload_interval > plan.local_steps:
        mistakes.append(
            f"upload_interval {plan.upload_interval} exceeds local_steps {plan.local_steps}: the server would train once a round; lower it"
        )
    if wrong & {"batch_size", "direction_groups"}:
        return mistakes
    if plan.batch_size % plan.direction_groups:
        mistakes.append(f"direction_groups {plan.direction_groups} does not divide batch_size {plan.batch_size}: choose a divisor")
    elif "micro_batch" not in wrong and plan.group_size % plan.micro_batch and not _is_whole_groups(plan):
        mistakes.append(
            f"micro_batch {plan.micro_batch} neither divides a group of {plan.group_size} samples nor is whole groups that divide "
            f"batch_size {plan.batch_size}: choose such a number"
        )
    return mistakes


def _is_whole_groups(plan: Plan) -> bool:
    return plan.micro_batch % plan.group_size == 0 and plan.batch_size % plan.micro_batch == 0


def _objective_mistakes(plan: Plan) -> list[str]:
    mistakes: list[str] = []
    if plan.objective is Objective.NONE and plan.trains_front:
        mistakes.append(
            f"objective=none gives estimator={plan.estimator.value} nothing to descend: set objective to auxiliary, server or cut_gradient, or estimator to none"
        )
    if plan.objective is Objective.AUXILIARY and plan.head_training is HeadTraining.NONE:
        mistakes.append("objective=auxiliary needs a head: set head_training to client, server or alignment, not none")
    if plan.objective is Objective.SERVER and plan.head_training in (HeadTraining.CLIENT, HeadTraining.ALIGNMENT):
        mistakes.append(f"objective=server has no local head to train: set head_training to none or server, not {plan.head_training.value}")
    if plan.objective is Objective.SERVER and plan.estimator is Estimator.FIRST_ORDER:
        mistakes.append("objective=server returns scalars, which estimator=first_order cannot use: set objective to cut_gradient")
    if plan.objective is Objective.CUT_GRADIENT and plan.head_training is not HeadTraining.NONE:
        mistakes.append(f"objective=cut_gradient needs no head: set head_training to none, not {plan.head_training.value}")
    if plan.objective is Objective.CUT_GRADIENT and plan.upload_interval > 1:
        mistakes.append(
            f"objective=cut_gradient needs the gradients of every step, but upload_interval is {plan.upload_interval}: set upload_interval to 1"
        )
    if plan.estimator is Estimator.FIRST_ORDER and plan.optimiser is ClientOptimiser.SCALAR_ADAPTIVE:
        mistakes.append(
            "client_optimiser=scalar_adaptive scales directions, of which estimator=first_order has none: use sgd, momentum, adam or adamw"
        )
    if plan.trains_front and 0 < plan.weight_decay < math.inf and plan.optimiser is not ClientOptimiser.ADAMW:
        mistakes.append(
            f"client_weight_decay is adamw's alone, and client_optimiser={plan.optimiser.value} would ignore it: set client_optimiser to adamw"
        )
    return mistakes


def _hybrid_mistakes(plan: Plan) -> list[str]:
    if plan.estimator is not Estimator.HYBRID:
        return []
    mistakes: list[str] = []
    if plan.objective in (Objective.SERVER, Objective.CUT_GRADIENT):
        mistakes.append(
            f"estimator=hybrid takes gradients and differences of one local loss, which objective={plan.objective.value} has not: set objective to auxiliary"
        )
    if plan.optimiser is ClientOptimiser.SCALAR_ADAPTIVE:
        mistakes.append(
            "client_optimiser=scalar_adaptive scales directions, but with estimator=hybrid it is to step the exact weights: use sgd, momentum, adam or adamw"
        )
    return mistakes


def _encoding_mistakes(plan: Plan) -> list[str]:
    mistakes: list[str] = []
    if plan.objective is Objective.SERVER and plan.wire_dtype is not WireDtype.FLOAT32:
        mistakes.append(
            f"objective=server takes differences of what wire_dtype={plan.wire_dtype.value} would round away: set wire_dtype to float32"
        )
    if plan.update_encoding is not UpdateEncoding.LOG or not plan.trains_front:
        return mistakes
    if plan.estimator is Estimator.HYBRID:
        mistakes.append(
            "update_encoding=log records directions, but estimator=hybrid moves some weights by gradients, which have none: set update_encoding to dense"
        )
    elif plan.estimator is Estimator.FIRST_ORDER:
        mistakes.append("update_encoding=log records directions, of which estimator=first_order has none: set update_encoding to dense")
    elif plan.optimiser not in _REPLAYED:
        mistakes.append(
            f"update_encoding=log cannot replay client_optimiser={plan.optimiser.value}: use sgd or scalar_adaptive, or set update_encoding to dense"
        )
    if plan.distribution is not DirectionDistribution.RADEMACHER:
        mistakes.append(
            f"update_encoding=log needs directions that are equal on every machine, which distribution={plan.distribution.value} is not: "
            "use rademacher, or set update_encoding to dense"
        )
    return mistakes


def can_log(plan: Plan) -> bool:
    """Whether a log of coefficients replays this plan's rounds exactly."""
    return (
        plan.estimator is Estimator.ZEROTH_ORDER and plan.optimiser in _REPLAYED and plan.distribution is DirectionDistribution.RADEMACHER
    )


def algorithm_mistakes(algorithm: Algorithm) -> list[str]:
    """Return every mistake in an algorithm whose plan is complete."""
    plan = algorithm.plan
    mistakes = plan_mistakes(plan)
    if plan.objective is Objective.SERVER and algorithm.schedule is ServerSchedule.SEQUENTIAL:
        mistakes.append("objective=server with server_schedule=sequential would idle every client but one: use arrival or lockstep")
    exact = plan.estimator is Estimator.FIRST_ORDER and plan.objective is Objective.AUXILIARY and plan.head_training is HeadTraining.CLIENT
    if algorithm.local_losses is not LocalLosses.END and not exact:
        mistakes.append(
            f"local_losses={algorithm.local_losses.value} are descended by exact gradients with heads of the client, not with estimator={plan.estimator.value}, "
            f"objective={plan.objective.value} and head_training={plan.head_training.value}: set local_losses to end, or those to first_order, auxiliary and client"
        )
    hybrid = plan.estimator is Estimator.HYBRID
    if hybrid and algorithm.exact_weights == NO_WEIGHTS:
        mistakes.append(
            "estimator=hybrid with exact_weights=none has nothing to take gradients of: set exact_weights to last-block, or estimator to zeroth_order"
        )
    if not hybrid and algorithm.exact_weights != NO_WEIGHTS:
        mistakes.append(
            f"exact_weights={algorithm.exact_weights} are set apart from weights that move by differences, but estimator={plan.estimator.value} moves all "
            "alike: set estimator to hybrid, or exact_weights to none"
        )
    if plan.waits_for_answers and algorithm.schedule is ServerSchedule.SHUFFLED:
        mistakes.append(
            f"objective={plan.objective.value} needs an answer to each upload, which server_schedule=shuffled does not give: use arrival or lockstep"
        )
    if algorithm.replicates_back and algorithm.schedule is ServerSchedule.SHUFFLED:
        mistakes.append("server_schedule=shuffled mixes clients, but a back per client (sflv1) keeps them apart: use arrival or lockstep")
    return mistakes


def contradictions(algorithm: Algorithm) -> list[str]:
    """Return what contradicts itself in an algorithm, whatever the model: what only a model decides stands at its most permissive."""
    plan = algorithm.plan
    settled = dataclasses.replace(plan, direction_groups=plan.direction_groups or 1, micro_batch=plan.micro_batch or 1)
    return algorithm_mistakes(dataclasses.replace(algorithm, plan=settled))


def statistics_mistakes(plan: Plan, model: ModelSpec) -> list[str]:
    """Return every mistake in a complete plan for a model whose batch normalisation takes the batch's own statistics; none for other models."""
    if not model.statistics:
        return []
    layer = model.statistics[0].name.rpartition(".")[0]
    other = "choose a normalisation that treats samples alone (norm=group or batch-frozen, batch_norm=frozen)"
    mistakes: list[str] = []
    if plan.direction_groups > 1:
        mistakes.append(
            f"direction_groups {plan.direction_groups} would normalise each group by itself, but norm=batch ({layer}) takes the statistics of the whole "
            f"batch: set direction_groups to 1, or {other}"
        )
    elif plan.micro_batch < plan.batch_size:
        mistakes.append(
            f"micro_batch {plan.micro_batch} would normalise each part by itself, but norm=batch ({layer}) takes the statistics of the whole "
            f"batch_size {plan.batch_size}: set micro_batch to {plan.batch_size}, or {other}"
        )
    if plan.objective is Objective.AUXILIARY and plan.difference is FiniteDifference.CENTRAL and plan.perturbs and plan.upload_interval > 1:
        mistakes.append(
            f"difference=central with upload_interval {plan.upload_interval} has steps without a base pass, which would leave the running statistics of "
            f"norm=batch ({layer}) behind: set difference to forward or upload_interval to 1"
        )
    in_head = next((spec.name.rpartition(".")[0] for spec in model.statistics if spec.name.startswith(HEAD_STATISTICS)), None)
    if plan.head_training is HeadTraining.ALIGNMENT and in_head is not None:
        mistakes.append(
            f"head_training=alignment fits a head sample by sample, but norm=batch in it ({in_head}) takes the statistics of a batch: give a head without "
            "batch normalisation, or batch_norm=frozen"
        )
    return mistakes
