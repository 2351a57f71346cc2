"""Options of the algorithm: each overrides one field of the preset's plan."""

from __future__ import annotations

import dataclasses
import math

from pydantic import Field

from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.algorithm.plan import (
    Algorithm,
    ClientOptimiser,
    DirectionScale,
    Estimator,
    HeadTraining,
    Objective,
    ServerSchedule,
    UpdateEncoding,
    Weighting,
)
from heron_common.algorithm.plan_checks import algorithm_mistakes
from heron_common.algorithm.presets import preset
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_server.configuration.section import Section


class PlanSection(Section):
    """What differs from the preset's plan; everything unset is the preset's."""

    local_steps: int | None = Field(None, ge=1, description="h, steps a client takes in a round")
    upload_interval: int | None = Field(None, ge=1, description="k, steps from one upload to the next")
    batch_size: int | None = Field(None, ge=1, description="B, samples of a step")
    objective: Objective | None = Field(None, description="whose loss the front descends: none, auxiliary, server or cut_gradient")
    estimator: Estimator | None = Field(None, description="how the client finds its direction: none, zeroth_order or first_order")
    head_training: HeadTraining | None = Field(None, description="who trains the auxiliary head: none, client, server or alignment")
    direction_groups: int | None = Field(
        None, ge=1, description="G, groups of the batch with a direction each (default: fixed from weight and FLOP counts)"
    )
    num_directions: int | None = Field(None, ge=1, description="P, directions per group; each costs a pass and divides the variance")
    distribution: DirectionDistribution | None = Field(None, description="directions: rademacher, gaussian or sphere")
    micro_batch: int | None = Field(
        None, ge=1, description="samples of one run of a program; changes memory only (default: fixed from activation bytes)"
    )
    smoothing_radius: float | None = Field(
        None,
        gt=0,
        description="mu, length of a perturbation in units of the direction's scale (default: the preset's, halved until finite differences are true)",
    )
    direction_scale: DirectionScale | None = Field(
        None,
        description="entries of a direction: unit, tensor_rms (each tensor's root mean square), global_rms (that of all trained weights) or block_rms (that, in one layer a round)",
    )
    difference: FiniteDifference | None = Field(None, description="forward or central")
    client_optimiser: ClientOptimiser | None = Field(
        None, description="sgd, momentum, adam, adamw, or scalar_adaptive for zeroth-order steps"
    )
    client_learning_rate: float | None = Field(None, gt=0, description="eta of the client's steps")
    client_momentum: float | None = Field(None, ge=0, lt=1, description="momentum of client_optimiser momentum")
    client_weight_decay: float | None = Field(None, ge=0, description="decoupled weight decay of client_optimiser adamw")
    final_rate_fraction: float | None = Field(
        None, ge=0, le=1, description="the client's learning rate falls linearly over the run to this share of itself; 1 keeps it"
    )
    clip_factor: float | None = Field(
        None, gt=0, description="directional derivatives beyond so many times the running 95 % quantile of their sizes are clipped"
    )
    wire_dtype: WireDtype | None = Field(
        None, description="activations and gradients at the cut travel as float32, float16, bfloat16 or int8 (a scale per row)"
    )
    update_encoding: UpdateEncoding | None = Field(
        None, description="what clients submit: dense (weights), log (coefficients, replayed bit for bit) or auto (the cheaper by counts)"
    )
    aggregation: AggregationRule | None = Field(
        None, description="mean, median, trimmed_mean (from five clients on), norm_clipped_mean or multi_krum (from five clients on)"
    )
    alignment_interval_rounds: int | None = Field(None, ge=1, description="heads are aligned every so many rounds (fsl-sage)")
    alignment_epochs: int | None = Field(None, ge=1, description="passes of an alignment over the rows that were kept (fsl-sage)")
    alignment_learning_rate: float | None = Field(None, gt=0, description="Adam's rate of an alignment (fsl-sage)")
    alignment_max_rows: int | None = Field(None, ge=1, description="latest rows per client that an alignment uses (fsl-sage)")
    server_schedule: ServerSchedule | None = Field(
        None,
        description="order of training on uploads: arrival, sequential, lockstep (reproducible bit for bit) or shuffled (a step's uploads mixed)",
    )
    weighting: Weighting | None = Field(None, description="how clients count in the average: examples or uniform")
    warmup_rounds: int | None = Field(None, ge=0, description="rounds in which only the server learns, before fronts move")


def configured_algorithm(name: str, section: PlanSection) -> Algorithm:
    """Return a preset with the options that were given in its place.

    Raises:
        ConfigurationError: there is no such preset.

    """
    algorithm = preset(name)
    changes = {key: value for key, value in section.model_dump().items() if value is not None}
    renamed = {
        "client_learning_rate": "learning_rate",
        "client_optimiser": "optimiser",
        "client_momentum": "momentum",
        "client_weight_decay": "weight_decay",
        "server_schedule": "schedule",
    }
    changes = {renamed.get(key, key): value for key, value in changes.items()}
    prefix = "alignment_"
    alignment = {key[len(prefix) :]: changes.pop(key) for key in list(changes) if key.startswith(prefix)}
    outside = ("schedule", "weighting", "warmup_rounds", "direction_scale", "aggregation", "final_rate_fraction")
    around = {key: changes.pop(key) for key in outside if key in changes}
    if "learning_rate" in changes:
        around |= {"rate_times_dimension": math.inf, "rate_times_root_dimension": math.inf}
    plan = dataclasses.replace(algorithm.plan, **changes)
    return dataclasses.replace(algorithm, plan=plan, alignment=dataclasses.replace(algorithm.alignment, **alignment), **around)


def contradictions(algorithm: Algorithm) -> list[str]:
    """Return what contradicts itself in an algorithm, whatever the model: what only a model decides stands at its most permissive."""
    plan = algorithm.plan
    settled = dataclasses.replace(plan, direction_groups=plan.direction_groups or 1, micro_batch=plan.micro_batch or 1)
    return algorithm_mistakes(dataclasses.replace(algorithm, plan=settled))
