"""Plans: what each preset promises, warm-up and decay, and what goes up at which step."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from heron_common.algorithm.algorithm import Algorithm, DirectionScale, ServerSchedule, Weighting
from heron_common.algorithm.payload_shapes import cut_gradient_specs, update_specs, upload_specs, weight_specs
from heron_common.algorithm.plan import ClientOptimiser, Estimator, HeadTraining, Objective, Plan, UpdateEncoding
from heron_common.algorithm.plan_checks import algorithm_mistakes, plan_mistakes
from heron_common.algorithm.presets import PRESETS, preset
from heron_common.errors import ConfigurationError
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.specification.model_spec import ModelSpec

COMPLETE = dataclasses.replace(PRESETS["heron"].plan, direction_groups=16, micro_batch=2)


def changed(**changes: Any) -> Plan:
    return dataclasses.replace(COMPLETE, **changes)


def complete(algorithm: Algorithm) -> Algorithm:
    """Return the algorithm with what the server would fix: here one direction and one micro-batch."""
    plan = algorithm.plan
    fixed = dataclasses.replace(plan, direction_groups=plan.direction_groups or 1, micro_batch=plan.micro_batch or plan.batch_size)
    return dataclasses.replace(algorithm, plan=fixed)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_sound_once_completed_and_carries_its_own_name(name: str) -> None:
    algorithm = preset(name)
    assert algorithm.plan.preset == name
    assert algorithm_mistakes(complete(algorithm)) == []


def test_an_unknown_preset_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        preset("herron")
    assert all(name in str(refusal.value) for name in ("'herron'", *PRESETS))


def test_the_papers_preset_is_strict() -> None:
    algorithm = preset("heron-paper")
    plan = algorithm.plan
    assert (algorithm.schedule, algorithm.weighting) == (ServerSchedule.SEQUENTIAL, Weighting.UNIFORM)
    assert (algorithm.warmup_rounds, algorithm.final_rate_fraction) == (0, 0.0)
    assert (algorithm.direction_scale, plan.direction_groups) == (DirectionScale.UNIT, 1)
    assert (plan.distribution, plan.optimiser) == (DirectionDistribution.SPHERE, ClientOptimiser.SGD)
    assert plan.objective is Objective.AUXILIARY
    assert plan.difference is FiniteDifference.FORWARD
    assert plan.trains_head
    assert plan.needs_head


def test_our_preset_leaves_the_head_to_the_server_and_warms_up() -> None:
    algorithm = preset("heron")
    assert algorithm.plan.needs_head
    assert not algorithm.plan.trains_head
    assert algorithm.plan.distribution is DirectionDistribution.RADEMACHER
    assert algorithm.warmup_rounds == 1


def test_the_server_loss_preset_sends_probes_and_needs_no_head() -> None:
    plan = preset("heron-server-loss").plan
    assert (plan.num_probes, plan.needs_head, plan.trains_head, plan.trains_front) == (1, False, False, True)


def test_the_frozen_preset_trains_nothing_on_the_client() -> None:
    plan = preset("frozen").plan
    assert (plan.trains_front, plan.trains_head, plan.needs_head, plan.num_probes) == (False, False, False, 0)


def test_presets_are_compared_at_equal_batches_and_uploads() -> None:
    assert len({(a.plan.batch_size, a.plan.local_steps, a.plan.upload_interval) for a in PRESETS.values()}) == 1


@pytest.mark.parametrize(
    ("objective", "estimator", "difference", "probes"),
    [
        (Objective.SERVER, Estimator.ZEROTH_ORDER, FiniteDifference.FORWARD, 1),
        (Objective.SERVER, Estimator.ZEROTH_ORDER, FiniteDifference.CENTRAL, 2),
        (Objective.SERVER, Estimator.NONE, FiniteDifference.CENTRAL, 0),
        (Objective.AUXILIARY, Estimator.ZEROTH_ORDER, FiniteDifference.CENTRAL, 0),
        (Objective.CUT_GRADIENT, Estimator.ZEROTH_ORDER, FiniteDifference.CENTRAL, 0),
        (Objective.NONE, Estimator.NONE, FiniteDifference.FORWARD, 0),
    ],
)
def test_only_the_servers_loss_needs_probes(objective: Objective, estimator: Estimator, difference: FiniteDifference, probes: int) -> None:
    plan = changed(objective=objective, estimator=estimator, difference=difference, head_training=HeadTraining.NONE)
    assert plan.num_probes == probes


@pytest.mark.parametrize(("difference", "probes"), [(FiniteDifference.FORWARD, 3), (FiniteDifference.CENTRAL, 6)])
def test_every_direction_of_a_group_is_another_copy_to_judge(difference: FiniteDifference, probes: int) -> None:
    plan = changed(objective=Objective.SERVER, difference=difference, num_directions=3)
    assert plan.num_probes == probes
    assert upload_specs(plan, MODEL)[0].shape[0] == (1 + probes) * plan.batch_size


@pytest.mark.parametrize("name", list(PRESETS))
def test_only_gradients_at_the_cut_and_probes_make_a_step_wait(name: str) -> None:
    plan = preset(name).plan
    assert plan.needs_cut_gradient == (name in ("ho-sfl", "sflv1", "sflv2"))
    assert plan.waits_for_answers == (plan.needs_cut_gradient or name == "heron-server-loss")
    resting = preset(name).plan_for_round(0, 10, rests=True)
    assert not resting.waits_for_answers
    assert not resting.needs_head


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (10, 1), (10, 3), (10, 5), (10, 10), (7, 4)])
def test_uploads_happen_at_multiples_of_the_interval(steps: int, interval: int) -> None:
    plan = changed(local_steps=steps, upload_interval=interval)
    naive = [step for step in range(steps) if step % interval == 0]
    assert list(plan.sending_steps) == naive


def test_with_probes_every_step_sends_but_only_some_are_trained_on() -> None:
    plan = changed(objective=Objective.SERVER, head_training=HeadTraining.NONE, local_steps=7, upload_interval=3)
    assert plan.sending_steps == tuple(range(7))
    assert [s for s in range(7) if plan.uploads_at(s)] == [0, 3, 6]


def test_the_front_rests_during_warm_up_and_nothing_else_changes() -> None:
    algorithm = dataclasses.replace(preset("heron-server-loss"), warmup_rounds=2)
    for round_index in (0, 1):
        resting = algorithm.plan_for_round(round_index, 10)
        assert not resting.trains_front
        assert resting.num_probes == 0
        assert dataclasses.replace(resting, objective=algorithm.plan.objective, estimator=algorithm.plan.estimator) == algorithm.plan
    assert algorithm.plan_for_round(2, 10).trains_front


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("name", "length"), [("heron", "relative_step"), ("cse-fsl", "learning_rate")])
def test_the_length_of_a_step_falls_linearly_towards_its_final_fraction(name: str, length: str, fraction: float) -> None:
    algorithm = dataclasses.replace(preset(name), warmup_rounds=0, final_rate_fraction=fraction)
    rates = [getattr(algorithm.plan_for_round(r, 8), length) for r in range(8)]
    full = getattr(algorithm.plan, length)
    assert rates[0] == full
    assert rates == pytest.approx([full + (fraction * full - full) * r / 8 for r in range(8)])
    assert min(rates) > 0
    assert plan_mistakes(complete(dataclasses.replace(algorithm, plan=algorithm.plan_for_round(7, 8))).plan) == []


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_round_of_every_preset_has_a_sound_plan(name: str) -> None:
    for round_index in range(5):
        algorithm = complete(preset(name))
        assert plan_mistakes(algorithm.plan_for_round(round_index, 5)) == []


MODEL = ModelSpec(
    (TensorSpec("w", DType.FLOAT32, (3, 4)), TensorSpec("b", DType.FLOAT32, (5,))),
    (TensorSpec("head", DType.FLOAT32, (7,)),),
    cut=TensorSpec("cut", DType.FLOAT32, (2, 6)),
)


@pytest.mark.parametrize(("objective", "rows"), [(Objective.AUXILIARY, 64), (Objective.SERVER, 3 * 64)])
def test_an_upload_has_the_base_rows_then_those_of_each_probe_then_the_labels(objective: Objective, rows: int) -> None:
    activations, labels = upload_specs(changed(objective=objective, difference=FiniteDifference.CENTRAL), MODEL)
    assert (activations.shape, activations.dtype) == ((rows, 2, 6), DType.FLOAT32)
    assert (labels.shape, labels.dtype) == ((64,), DType.INT64)


def test_an_update_holds_what_was_trained_and_nothing_else() -> None:
    assert update_specs(preset("frozen").plan, MODEL) == ()
    assert [s.shape for s in update_specs(preset("heron").plan, MODEL)] == [(17,)]
    assert [s.shape for s in update_specs(preset("heron-paper").plan, MODEL)] == [(17,), (7,)]


def test_running_statistics_are_one_more_tensor_of_every_update_whatever_was_trained() -> None:
    running = [TensorSpec(f"{part}.1.running_{what}", DType.FLOAT32, (4,)) for part in ("front", "head") for what in ("mean", "var")]
    model = dataclasses.replace(MODEL, statistics=tuple(running))
    for name, beside in (("frozen", []), ("heron", ["client_model"]), ("heron-paper", ["client_model", "auxiliary_head"])):
        specs = update_specs(preset(name).plan, model)
        assert [s.name for s in specs] == [*beside, "statistics"] and specs[-1].shape == (16,)
        assert weight_specs(preset(name).plan, model) == specs[:-1]
    log = update_specs(changed(update_encoding=UpdateEncoding.LOG), model)
    assert [(s.name, s.dtype) for s in log] == [("coefficients", DType.FLOAT64), ("statistics", DType.FLOAT32)]
    assert model.statistics_read(with_head=True) == tuple(running) and model.statistics_read(with_head=False) == tuple(running[:2])


@pytest.mark.parametrize("name", ["ho-sfl", "sflv1", "sflv2"])
@pytest.mark.parametrize("dtype", list(WireDtype))
def test_lambda_answers_with_a_row_for_each_sample_in_the_wire_dtype(name: str, dtype: WireDtype) -> None:
    (spec,) = cut_gradient_specs(dataclasses.replace(preset(name).plan, wire_dtype=dtype), MODEL)
    assert (spec.name, spec.dtype, spec.shape) == ("cut_gradient", DType(dtype.value), (64, 2, 6))
    assert cut_gradient_specs(preset("heron").plan, MODEL) == ()


def test_a_log_is_one_row_of_coefficients_a_step() -> None:
    plan = changed(update_encoding=UpdateEncoding.LOG, num_directions=3)
    (spec,) = update_specs(plan, MODEL)
    assert (spec.name, spec.dtype, spec.shape) == ("coefficients", DType.FLOAT64, (10, 16 * 3))
    assert [s.name for s in update_specs(plan, MODEL, UpdateEncoding.DENSE)] == ["client_model"]
    assert update_specs(dataclasses.replace(plan, estimator=Estimator.NONE), MODEL) == ()


def test_only_the_papers_rate_is_capped_by_the_number_of_weights() -> None:
    assert [preset("heron-paper").rate_at_most(d) for d in (100, 10_000)] == [0.3, 0.003]
    assert preset("cse-fsl").rate_at_most(10**9) == math.inf
