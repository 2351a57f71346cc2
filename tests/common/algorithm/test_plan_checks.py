"""Plans that contradict themselves: every refusal names both fields and the remedy, sound neighbours pass, and all mistakes come at once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from heron_common.algorithm.algorithm import Algorithm, LocalLosses, ServerSchedule
from heron_common.algorithm.plan import ClientOptimiser, Estimator, HeadTraining, Objective, Plan, UpdateEncoding
from heron_common.algorithm.plan_checks import algorithm_mistakes, can_log, plan_mistakes, statistics_mistakes, step_mistakes
from heron_common.algorithm.presets import PRESETS, preset
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.specification.model_spec import ModelSpec

COMPLETE = dataclasses.replace(PRESETS["heron"].plan, direction_groups=16, micro_batch=2)


def changed(**changes: Any) -> Plan:
    return dataclasses.replace(COMPLETE, **changes)


def complete(algorithm: Algorithm, **plan: Any) -> Algorithm:
    """Return the algorithm with what the server would fix: here one direction and one micro-batch."""
    fixed = dataclasses.replace(algorithm.plan, direction_groups=algorithm.plan.direction_groups or 1, micro_batch=2)
    return dataclasses.replace(algorithm, plan=dataclasses.replace(fixed, **plan))


VALUES = ["local_steps", "upload_interval", "batch_size", "direction_groups", "num_directions", "micro_batch"]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_named(name: str, value: int) -> None:
    assert plan_mistakes(changed(**{name: value})) == [f"{name} must be at least 1 and at most 1000000, not {value}: give such a number"]


@pytest.mark.parametrize(("name", "option"), [("smoothing_radius",) * 2, ("learning_rate", "client_learning_rate"), ("clip_factor",) * 2])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_number_that_is_not_positive_and_finite_is_named_as_its_option(name: str, option: str, value: float) -> None:
    assert plan_mistakes(changed(**{name: value})) == [
        f"{option} must be a positive finite number, not {value}: give one, or leave it to the preset"
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("momentum", 1.0, ["client_momentum", "below 1", "not 1.0"]),
        ("momentum", -0.1, ["client_momentum", "at least 0", "not -0.1"]),
        ("momentum", math.nan, ["client_momentum", "not nan"]),
        ("weight_decay", -1e-3, ["client_weight_decay", "at least 0", "not -0.001"]),
        ("weight_decay", math.inf, ["client_weight_decay", "not inf"]),
    ],
)
def test_a_momentum_or_decay_out_of_range_is_named_as_its_option(name: str, value: float, words: list[str]) -> None:
    (mistake,) = plan_mistakes(changed(**{name: value}))
    assert all(word in mistake for word in words)


LOG = {"update_encoding": UpdateEncoding.LOG, "optimiser": ClientOptimiser.SGD}
LAMBDA = {"objective": Objective.CUT_GRADIENT, "head_training": HeadTraining.NONE}
SERVER = {"objective": Objective.SERVER, "head_training": HeadTraining.NONE}
EXACT = {"estimator": Estimator.FIRST_ORDER, "optimiser": ClientOptimiser.ADAM, "head_training": HeadTraining.CLIENT}
HYBRID = EXACT | {"estimator": Estimator.HYBRID, "update_encoding": UpdateEncoding.DENSE}

CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"local_steps": 4, "upload_interval": 5}, ["upload_interval 5", "local_steps 4", "lower it"]),
    ({"batch_size": 60}, ["direction_groups 16", "batch_size 60", "choose a divisor"]),
    ({"batch_size": 48}, ["micro_batch 2", "group of 3", "whole groups", "batch_size 48"]),
    ({"batch_size": 16, "micro_batch": 3}, ["micro_batch 3", "group of 1", "whole groups", "batch_size 16"]),
    ({"micro_batch": 12}, ["micro_batch 12", "group of 4", "whole groups", "batch_size 64"]),
    ({"objective": Objective.NONE}, ["objective=none", "estimator=zeroth_order", "cut_gradient", "estimator to none"]),
    (EXACT | {"objective": Objective.NONE}, ["objective=none", "estimator=first_order", "cut_gradient", "estimator to none"]),
    ({"head_training": HeadTraining.NONE}, ["objective=auxiliary", "head_training", "client, server or alignment"]),
    (EXACT | {"head_training": HeadTraining.NONE}, ["objective=auxiliary", "head_training", "client, server or alignment"]),
    (SERVER | {"head_training": HeadTraining.CLIENT}, ["objective=server", "head_training to none or server", "not client"]),
    (SERVER | {"head_training": HeadTraining.ALIGNMENT}, ["objective=server", "head_training to none or server", "not alignment"]),
    (LAMBDA | {"head_training": HeadTraining.CLIENT}, ["objective=cut_gradient", "head_training to none", "not client"]),
    (LAMBDA | {"head_training": HeadTraining.SERVER}, ["objective=cut_gradient", "head_training to none", "not server"]),
    (LAMBDA | {"head_training": HeadTraining.ALIGNMENT}, ["objective=cut_gradient", "head_training to none", "not alignment"]),
    (LAMBDA | {"upload_interval": 2}, ["objective=cut_gradient", "upload_interval is 2", "upload_interval to 1"]),
    (EXACT | SERVER, ["objective=server", "estimator=first_order", "objective to cut_gradient"]),
    (
        EXACT | {"optimiser": ClientOptimiser.SCALAR_ADAPTIVE},
        ["client_optimiser=scalar_adaptive", "estimator=first_order", "sgd, momentum, adam or adamw"],
    ),
    (HYBRID | SERVER, ["estimator=hybrid", "objective=server", "objective to auxiliary"]),
    (HYBRID | LAMBDA, ["estimator=hybrid", "objective=cut_gradient", "objective to auxiliary"]),
    (HYBRID | {"objective": Objective.NONE}, ["objective=none", "estimator=hybrid", "estimator to none"]),
    (
        HYBRID | {"optimiser": ClientOptimiser.SCALAR_ADAPTIVE},
        ["client_optimiser=scalar_adaptive", "estimator=hybrid", "sgd, momentum, adam or adamw"],
    ),
    (HYBRID | {"update_encoding": UpdateEncoding.LOG}, ["update_encoding=log", "estimator=hybrid", "dense"]),
    *(
        (
            {"optimiser": optimiser, "weight_decay": 0.1},
            ["client_weight_decay", f"client_optimiser={optimiser.value}", "client_optimiser to adamw"],
        )
        for optimiser in ClientOptimiser
        if optimiser is not ClientOptimiser.ADAMW
    ),
    *(
        (SERVER | {"wire_dtype": dtype}, ["objective=server", f"wire_dtype={dtype.value}", "wire_dtype to float32"])
        for dtype in (WireDtype.FLOAT16, WireDtype.BFLOAT16, WireDtype.INT8)
    ),
    *(
        (LOG | {"optimiser": optimiser}, ["update_encoding=log", f"client_optimiser={optimiser.value}", "sgd or scalar_adaptive", "dense"])
        for optimiser in (ClientOptimiser.MOMENTUM, ClientOptimiser.ADAM, ClientOptimiser.ADAMW)
    ),
    *(
        (LOG | {"distribution": distribution}, ["update_encoding=log", f"distribution={distribution.value}", "use rademacher", "dense"])
        for distribution in (DirectionDistribution.GAUSSIAN, DirectionDistribution.SPHERE)
    ),
    (EXACT | {"update_encoding": UpdateEncoding.LOG}, ["update_encoding=log", "estimator=first_order", "update_encoding to dense"]),
]


@pytest.mark.parametrize(("changes", "words"), CONTRADICTIONS, ids=["-".join(map(str, changes.values())) for changes, _ in CONTRADICTIONS])
def test_two_fields_that_contradict_each_other_are_both_named_with_the_remedy(changes: dict[str, Any], words: list[str]) -> None:
    (mistake,) = plan_mistakes(changed(**changes))
    assert all(word in mistake for word in words), mistake


SCHEDULES: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "heron-server-loss",
        {"schedule": ServerSchedule.SEQUENTIAL},
        ["objective=server", "server_schedule=sequential", "arrival or lockstep"],
    ),
    ("heron-server-loss", {"schedule": ServerSchedule.SHUFFLED}, ["objective=server", "server_schedule=shuffled", "arrival or lockstep"]),
    ("ho-sfl", {"schedule": ServerSchedule.SHUFFLED}, ["objective=cut_gradient", "server_schedule=shuffled", "arrival or lockstep"]),
    ("sflv2", {"schedule": ServerSchedule.SHUFFLED}, ["objective=cut_gradient", "server_schedule=shuffled", "arrival or lockstep"]),
    (
        "cse-fsl",
        {"schedule": ServerSchedule.SHUFFLED, "replicates_back": True},
        ["server_schedule=shuffled", "a back per client", "arrival or lockstep"],
    ),
]


@pytest.mark.parametrize(("name", "around", "words"), SCHEDULES, ids=[f"{name}-{list(around.values())}" for name, around, _ in SCHEDULES])
def test_a_schedule_that_the_plan_cannot_run_under_is_named_with_the_alternatives(
    name: str, around: dict[str, Any], words: list[str]
) -> None:
    (mistake,) = algorithm_mistakes(dataclasses.replace(complete(preset(name)), **around))
    assert all(word in mistake for word in words), mistake


@pytest.mark.parametrize("schedule", [ServerSchedule.ARRIVAL, ServerSchedule.LOCKSTEP])
@pytest.mark.parametrize("name", list(PRESETS))
def test_the_schedules_that_refusals_recommend_suit_every_preset(name: str, schedule: ServerSchedule) -> None:
    assert algorithm_mistakes(dataclasses.replace(complete(preset(name)), schedule=schedule)) == []


@pytest.mark.parametrize("name", ["heron", "heron-paper", "cse-fsl", "fsl-sage", "frozen"])
def test_plans_that_never_wait_may_have_their_uploads_mixed(name: str) -> None:
    assert algorithm_mistakes(dataclasses.replace(complete(preset(name)), schedule=ServerSchedule.SHUFFLED)) == []


@pytest.mark.parametrize("dtype", list(WireDtype))
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "heron-server-loss"])
def test_activations_and_lambda_may_travel_in_every_wire_dtype(name: str, dtype: WireDtype) -> None:
    assert algorithm_mistakes(complete(preset(name), wire_dtype=dtype)) == []


@pytest.mark.parametrize("head", [HeadTraining.NONE, HeadTraining.SERVER])
def test_the_servers_loss_may_leave_a_head_to_the_server(head: HeadTraining) -> None:
    assert plan_mistakes(changed(objective=Objective.SERVER, head_training=head)) == []


@pytest.mark.parametrize("head", [HeadTraining.CLIENT, HeadTraining.SERVER, HeadTraining.ALIGNMENT])
@pytest.mark.parametrize("estimator", [Estimator.FIRST_ORDER, Estimator.ZEROTH_ORDER])
def test_a_local_loss_takes_any_head_that_somebody_trains(estimator: Estimator, head: HeadTraining) -> None:
    assert plan_mistakes(changed(estimator=estimator, optimiser=ClientOptimiser.ADAM, head_training=head)) == []


def test_the_largest_values_that_fit_are_no_mistakes() -> None:
    assert plan_mistakes(changed(local_steps=5, upload_interval=5, batch_size=16, direction_groups=16, micro_batch=1)) == []
    assert plan_mistakes(changed(batch_size=16, direction_groups=1, micro_batch=16)) == []
    assert plan_mistakes(changed(batch_size=16, direction_groups=16, micro_batch=16)) == []
    assert plan_mistakes(changed(momentum=0.0, weight_decay=0.0)) == []
    assert plan_mistakes(changed(optimiser=ClientOptimiser.ADAMW, weight_decay=0.1)) == []


def test_all_wrong_values_are_named_at_once() -> None:
    wrong = changed(local_steps=0, upload_interval=-3, batch_size=0, smoothing_radius=math.nan, learning_rate=0.0, momentum=2.0)
    named = [mistake.split()[0] for mistake in plan_mistakes(wrong)]
    assert named == ["smoothing_radius", "local_steps", "upload_interval", "batch_size", "client_learning_rate", "client_momentum"]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, math.nan, math.inf])
def test_a_relative_step_is_a_share(share: float) -> None:
    (mistake,) = plan_mistakes(changed(relative_step=share))
    assert mistake.startswith("relative_step must be") and str(share) in mistake
    assert plan_mistakes(changed(relative_step=share, optimiser=ClientOptimiser.ADAM, update_encoding=UpdateEncoding.DENSE)) == []


def test_a_length_that_the_plans_steps_are_not_measured_by_is_named_with_what_to_give() -> None:
    for name in ("heron", "heron-server-loss", "ho-sfl"):
        (mistake,) = step_mistakes(preset(name).plan, {"client_learning_rate", "local_steps"})
        assert "client_learning_rate" in mistake and "relative_step" in mistake and "client_optimiser" in mistake
        assert step_mistakes(preset(name).plan, {"relative_step"}) == []
    for name in ("heron-paper", "cse-fsl", "frozen"):
        (mistake,) = step_mistakes(preset(name).plan, {"relative_step"})
        assert "relative_step" in mistake and "client_learning_rate" in mistake
        assert step_mistakes(preset(name).plan, {"client_learning_rate"}) == []


def test_all_contradictions_are_named_at_once() -> None:
    wrong = dataclasses.replace(
        preset("heron"),
        plan=changed(
            local_steps=2,
            upload_interval=3,
            batch_size=60,
            objective=Objective.SERVER,
            head_training=HeadTraining.CLIENT,
            wire_dtype=WireDtype.INT8,
            update_encoding=UpdateEncoding.LOG,
            optimiser=ClientOptimiser.ADAM,
            distribution=DirectionDistribution.SPHERE,
        ),
        schedule=ServerSchedule.SEQUENTIAL,
    )
    mistakes = algorithm_mistakes(wrong)
    assert len(mistakes) == len(set(mistakes)) == 7, mistakes


def test_wrong_values_do_not_hide_contradictions_between_other_fields() -> None:
    mistakes = plan_mistakes(changed(smoothing_radius=-1.0, head_training=HeadTraining.NONE))
    assert len(mistakes) == 2, mistakes


@pytest.mark.invariant(10)
@pytest.mark.parametrize("optimiser", list(ClientOptimiser))
@pytest.mark.parametrize("distribution", list(DirectionDistribution))
@pytest.mark.parametrize("estimator", list(Estimator))
def test_a_log_is_offered_exactly_where_asking_for_one_is_no_mistake(
    estimator: Estimator, distribution: DirectionDistribution, optimiser: ClientOptimiser
) -> None:
    plan = changed(estimator=estimator, distribution=distribution, optimiser=optimiser, update_encoding=UpdateEncoding.LOG)
    replays = (
        estimator is Estimator.ZEROTH_ORDER
        and distribution is DirectionDistribution.RADEMACHER
        and optimiser in (ClientOptimiser.SGD, ClientOptimiser.SCALAR_ADAPTIVE)
    )
    assert can_log(plan) == replays
    if estimator is not Estimator.NONE:
        named = [mistake for mistake in plan_mistakes(plan) if mistake.startswith("update_encoding=log")]
        assert bool(named) == (not replays)


def test_a_resting_front_submits_nothing_so_its_encoding_is_no_mistake() -> None:
    algorithm = complete(preset("heron"), update_encoding=UpdateEncoding.LOG)
    assert not plan_mistakes(algorithm.plan_for_round(0, 10))
    assert not algorithm.plan_for_round(0, 10).trains_front


def by_batch(*layers: str) -> ModelSpec:
    statistics = tuple(TensorSpec(f"{layer}.running_mean", DType.FLOAT32, (4,)) for layer in layers)
    return ModelSpec((), (), cut=TensorSpec("cut", DType.FLOAT32, (6,)), statistics=statistics)


WHOLE = {"direction_groups": 1, "micro_batch": COMPLETE.batch_size}


@pytest.mark.parametrize(
    ("changes", "layers", "words"),
    [
        (
            {"direction_groups": 2, "micro_batch": 32},
            ["front.1"],
            ["direction_groups 2", "norm=batch (front.1)", "set direction_groups to 1"],
        ),
        (
            {"micro_batch": 32},
            ["front.1"],
            ["micro_batch 32", "norm=batch (front.1)", "batch_size 64", "set micro_batch to 64", "batch-frozen"],
        ),
        (
            {"difference": FiniteDifference.CENTRAL, "upload_interval": 2},
            ["front.1"],
            ["difference=central", "upload_interval 2", "norm=batch (front.1)", "forward or upload_interval to 1"],
        ),
        (
            {"head_training": HeadTraining.ALIGNMENT},
            ["front.1", "head.2"],
            ["head_training=alignment", "norm=batch", "head.2", "batch_norm=frozen"],
        ),
    ],
)
def test_a_plan_that_normalises_by_less_than_the_batch_is_named_with_the_layer(
    changes: dict[str, Any], layers: list[str], words: list[str]
) -> None:
    (mistake,) = statistics_mistakes(changed(**{**WHOLE, **changes}), by_batch(*layers))
    assert all(word in mistake for word in words), mistake
    assert statistics_mistakes(changed(**changes), by_batch()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"difference": FiniteDifference.CENTRAL},
        {"upload_interval": 2},
        {"difference": FiniteDifference.CENTRAL, "upload_interval": 2, "estimator": Estimator.FIRST_ORDER},
        {"difference": FiniteDifference.CENTRAL, "upload_interval": 2, "objective": Objective.SERVER},
        {"head_training": HeadTraining.ALIGNMENT},
    ],
)
def test_whole_batches_with_a_base_pass_a_step_suit_every_other_plan(changes: dict[str, Any]) -> None:
    assert statistics_mistakes(changed(**{**WHOLE, **changes}), by_batch("front.1")) == []


@pytest.mark.parametrize(
    ("name", "around", "words"),
    [
        ("hybrid", {"exact_weights": "none"}, ["estimator=hybrid", "exact_weights=none", "last-block", "zeroth_order"]),
        ("heron", {"exact_weights": "last-block"}, ["exact_weights=last-block", "estimator=zeroth_order", "estimator to hybrid"]),
        ("cse-fsl", {"exact_weights": "last"}, ["exact_weights=last", "estimator=first_order", "exact_weights to none"]),
        ("hybrid", {"local_losses": LocalLosses.BLOCKS}, ["local_losses=blocks", "estimator=hybrid", "local_losses to end"]),
    ],
)
def test_two_estimators_and_the_weights_that_are_set_apart_belong_together(name: str, around: dict[str, Any], words: list[str]) -> None:
    assert algorithm_mistakes(complete(preset(name))) == []
    (mistake,) = algorithm_mistakes(complete(dataclasses.replace(preset(name), **around)))
    assert all(word in mistake for word in words)


def test_a_hybrid_step_has_a_learning_rate_and_a_relative_length() -> None:
    plan = complete(preset("hybrid")).plan
    assert step_mistakes(plan, ["client_learning_rate", "relative_step"]) == [] and not can_log(plan)
    assert "--relative-step" in plan.step_option and "--client-learning-rate" in plan.step_option
    for value in (0.0, 1.5):
        (mistake,) = plan_mistakes(dataclasses.replace(plan, relative_step=value))
        assert "relative_step" in mistake
    for counted in (-1.0, math.nan, math.inf):
        assert any("backward_equivalents" in mistake for mistake in plan_mistakes(dataclasses.replace(plan, backward_equivalents=counted)))
