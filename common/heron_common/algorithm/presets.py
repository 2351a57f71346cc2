"""The algorithm table: a preset is a row. Each row cites its source and says what crosses the wire beside weights, activations and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from heron_common.algorithm.algorithm import Algorithm, DirectionScale, LocalLosses, ServerSchedule, Weighting
from heron_common.algorithm.plan import ClientOptimiser, Estimator, HeadTraining, Objective, Plan, UpdateEncoding
from heron_common.errors import ConfigurationError
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.zeroth_order import FiniteDifference

_ZEROTH_ORDER = Plan(
    preset="heron",
    objective=Objective.AUXILIARY,
    estimator=Estimator.ZEROTH_ORDER,
    difference=FiniteDifference.FORWARD,
    distribution=DirectionDistribution.RADEMACHER,
    direction_groups=0,
    smoothing_radius=1e-3,
    head_training=HeadTraining.SERVER,
    local_steps=10,
    upload_interval=1,
    batch_size=64,
    micro_batch=0,
    optimiser=ClientOptimiser.SCALAR_ADAPTIVE,
    learning_rate=5e-3,
    clip_factor=2.0,
    update_encoding=UpdateEncoding.AUTO,
    relative_step=0.1,
)
"""Zeros in direction_groups and micro_batch mean: the server fixes them from weight and FLOP counts."""

_FIRST_ORDER = dataclasses.replace(
    _ZEROTH_ORDER,
    estimator=Estimator.FIRST_ORDER,
    direction_groups=1,
    head_training=HeadTraining.CLIENT,
    optimiser=ClientOptimiser.ADAM,
    update_encoding=UpdateEncoding.DENSE,
    relative_step=0.0,
)

_HERON = Algorithm(
    _ZEROTH_ORDER,
    ServerSchedule.ARRIVAL,
    weighting=Weighting.EXAMPLES,
    direction_scale=DirectionScale.GLOBAL_RMS,
    scale_floor=1e-2,
    warmup_rounds=1,
    final_rate_fraction=0.0,
)
_RIVAL = Algorithm(
    _FIRST_ORDER,
    ServerSchedule.ARRIVAL,
    weighting=Weighting.EXAMPLES,
    direction_scale=DirectionScale.UNIT,
    scale_floor=1e-2,
    warmup_rounds=0,
    final_rate_fraction=0.0,
)


def _row(base: Algorithm, name: str, *, around: dict[str, object] | None = None, **plan: object) -> Algorithm:
    changed = dataclasses.replace(base.plan, preset=name, **plan)  # type: ignore[arg-type]
    return dataclasses.replace(base, plan=changed, **(around or {}))  # type: ignore[arg-type]


PRESETS: dict[str, Algorithm] = {
    # Ours: the best measured at the paper's client memory. Down: scalars.
    "heron": _HERON,
    # arXiv 2601.09076, strictly: one unit-sphere direction a step over front and head together (in our convention of radius sqrt(d)),
    # forward difference, the client trains the head, uniform average, SFLV2's client-after-client server. Down: scalars.
    "heron-paper": _row(
        _HERON,
        "heron-paper",
        distribution=DirectionDistribution.SPHERE,
        direction_groups=1,
        head_training=HeadTraining.CLIENT,
        smoothing_radius=2e-4,
        optimiser=ClientOptimiser.SGD,
        learning_rate=3e-2,
        clip_factor=5.0,
        update_encoding=UpdateEncoding.DENSE,
        relative_step=0.0,
        around={
            "schedule": ServerSchedule.SEQUENTIAL,
            "weighting": Weighting.UNIFORM,
            "direction_scale": DirectionScale.UNIT,
            "warmup_rounds": 0,
            "rate_times_dimension": 30.0,
        },
    ),
    # Differences of the per-sample losses that the server returns: no auxiliary head, no bias of a local loss (HOSL, arXiv 2601.10940, federated).
    # Up: a second, perturbed copy of the activations. Down: a scalar a sample and copy.
    "heron-server-loss": _row(_HERON, "heron-server-loss", objective=Objective.SERVER, head_training=HeadTraining.NONE),
    # HO-SFL (arXiv 2603.14773): finite differences of <lambda, z>, central because the base pass yields no inner product before lambda is there.
    # Down: lambda.
    "ho-sfl": _row(
        _HERON, "ho-sfl", objective=Objective.CUT_GRADIENT, head_training=HeadTraining.NONE, difference=FiniteDifference.CENTRAL
    ),
    # CSE-FSL (arXiv 2507.15816): exact gradients of a local loss for front and head, in micro-batches. Down: scalars.
    "cse-fsl": _row(_RIVAL, "cse-fsl"),
    # Exact local learning: a loss behind every block of the front, or behind every second one, and no gradient crosses them. Down: scalars.
    "blockwise": _row(_RIVAL, "blockwise", around={"local_losses": LocalLosses.BLOCKS}),
    "pairs": _row(_RIVAL, "pairs", around={"local_losses": LocalLosses.PAIRS}),
    # Exact local learning of the last block alone: the gradient enters no other. Down: scalars.
    "last-exact": _row(_RIVAL, "last-exact", around={"train_weights": "last-block"}),
    # That, and zeroth-order steps of the other blocks' norms, by differences of the same loss. Down: scalars.
    "hybrid": _row(
        _RIVAL,
        "hybrid",
        estimator=Estimator.HYBRID,
        direction_groups=0,
        relative_step=0.05,
        around={"train_weights": "norms+last-block", "exact_weights": "last-block", "direction_scale": DirectionScale.GLOBAL_RMS},
    ),
    # FSL-SAGE (arXiv 2505.23182): exact gradients through a head that is the client's own and that the server aligns with its gradients at the cut.
    # Down: scalars, and each client's own head.
    "fsl-sage": _row(_RIVAL, "fsl-sage", head_training=HeadTraining.ALIGNMENT),
    # SFLV1 (arXiv 2004.12088): gradients at the cut from a back per client, averaged every round. Down: lambda.
    "sflv1": _row(_RIVAL, "sflv1", objective=Objective.CUT_GRADIENT, head_training=HeadTraining.NONE, around={"replicates_back": True}),
    # SFLV2 (arXiv 2004.12088): gradients at the cut from one back, client after client. Down: lambda.
    "sflv2": _row(
        _RIVAL,
        "sflv2",
        objective=Objective.CUT_GRADIENT,
        head_training=HeadTraining.NONE,
        around={"schedule": ServerSchedule.SEQUENTIAL},
    ),
    # The control: the front keeps its first weights, only the server learns. Down: scalars.
    "frozen": _row(
        _RIVAL,
        "frozen",
        objective=Objective.NONE,
        estimator=Estimator.NONE,
        head_training=HeadTraining.NONE,
        around={"final_rate_fraction": 1.0},
    ),
}


def preset(name: str) -> Algorithm:
    """Return a row of the table.

    Raises:
        ConfigurationError: see `check_preset`.

    """
    check_preset(name)
    return PRESETS[name]


def check_preset(name: str, own: Collection[str] = ()) -> None:
    """Refuse a name that is neither in the table nor one of an operator's own presets.

    Raises:
        ConfigurationError: there is no such preset; the message lists those that exist.

    """
    if name not in PRESETS and name not in own:
        raise ConfigurationError(f"unknown preset {name!r}: choose one of {', '.join([*PRESETS, *own])}")
