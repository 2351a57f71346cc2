"""From derivatives to coefficients: the formulas against naive twins, bounded steps, scales."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heron_common.numerics.directions import DirectionDistribution, Directions, PerturbationSeed
from heron_common.numerics.update_log import apply_coefficients
from heron_common.numerics.zeroth_order import (
    MAX_STEP_SCALES,
    RunningQuantile,
    SecondMoment,
    bounded,
    global_scales,
    guard,
    relative_coefficients,
    sgd_coefficients,
    tensor_scales,
)
from tests.common.numerics.estimators import layout_of

DERIVATIVES = np.array([0.3, -1.1, 0.0, 2.0])


def naive_relative(derivatives: list[float], second_moment: float, share: float) -> list[float]:
    return [-share * c / math.sqrt(second_moment) / math.sqrt(len(derivatives)) for c in derivatives]


def test_sgd_coefficients_average_the_groups_and_descend() -> None:
    np.testing.assert_allclose(sgd_coefficients(DERIVATIVES, 0.1), [-0.1 * c / 4 for c in DERIVATIVES], rtol=1e-15)


@pytest.mark.parametrize("second_moment", [1e-9, 0.7, 1e9])
def test_relative_coefficients_equal_their_naive_twin(second_moment: float) -> None:
    derivatives = DERIVATIVES * math.sqrt(second_moment)
    came = relative_coefficients(derivatives, second_moment, 0.3)
    np.testing.assert_allclose(came, naive_relative(derivatives.tolist(), second_moment, 0.3), rtol=1e-13)


@pytest.mark.parametrize("dimension", [87, 1000, 50_000])
@pytest.mark.parametrize("groups", [1, 4, 32])
def test_a_relative_step_moves_the_weights_by_its_share_of_their_norm(dimension: int, groups: int) -> None:
    random = np.random.default_rng(dimension + groups)
    theta = random.standard_normal(dimension).astype(np.float32)
    scales = global_scales([theta], 1e-2)
    lengths = []
    for seed in range(20):
        derivatives = random.standard_normal(groups) * 7
        coefficients = relative_coefficients(derivatives, float(np.mean(np.square(derivatives))), 0.05)
        moved = theta.copy()
        directions = Directions(PerturbationSeed(seed, 1), DirectionDistribution.RADEMACHER, layout_of(dimension))
        apply_coefficients(moved, coefficients, directions=directions, scales=scales)
        lengths.append(float(np.linalg.norm(moved - theta) / np.linalg.norm(theta)))
    # Of a hundred weights and 32 directions some overlap; on average none of a step's length is lost.
    assert np.mean(lengths) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("unknown", [0.0, -1.0])
def test_without_a_known_second_moment_an_adaptive_step_rests(unknown: float) -> None:
    assert not relative_coefficients(DERIVATIVES, unknown, 0.3).any()


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20, 1e-6, 1e6])
def test_adaptive_steps_do_not_depend_on_the_scale_of_the_loss(factor: float) -> None:
    random, known, steps = np.random.default_rng(0), [(SecondMoment(), RunningQuantile())] * 2, []
    for _ in range(20):
        derivatives = random.standard_normal(4)
        pair = []
        for index, scale in enumerate((1.0, factor)):
            guarded = guard(derivatives * scale, known[index][0], quantile=known[index][1], clip_factor=1.5)
            known[index] = (guarded.second_moment, guarded.quantile)
            pair.append(relative_coefficients(guarded.values, guarded.second_moment.value, 0.3))
        steps.append(pair)
    plain, scaled = np.array(steps).transpose(1, 0, 2)
    np.testing.assert_allclose(scaled, plain, rtol=1e-9)
    assert np.abs(plain).min() > 0


def test_coefficients_within_the_bound_are_not_touched() -> None:
    within = np.array([0.5, -0.25, 0.25]) * MAX_STEP_SCALES
    assert np.array_equal(bounded(within), within)


@pytest.mark.parametrize("excess", [1.0001, 7.0, 1e300])
def test_coefficients_beyond_the_bound_shrink_together_and_keep_their_direction(excess: float) -> None:
    wild = np.array([0.5, -0.25, 0.25]) * MAX_STEP_SCALES * excess
    np.testing.assert_allclose(bounded(wild), wild / excess, rtol=1e-12)


@pytest.mark.invariant(21)
@pytest.mark.parametrize("rate", [1e-2, 1e12])
def test_a_rademacher_step_moves_no_weight_beyond_its_tensors_scale(rate: float) -> None:
    scales = np.array([0.01, 3.0])
    directions = Directions(PerturbationSeed(1, 1), DirectionDistribution.RADEMACHER, layout_of(50, 50))
    moved = np.zeros(100, np.float32)
    for group, coefficient in enumerate(sgd_coefficients(np.array([4.0, -3.0, 5.0]), rate)):
        directions.add(group, coefficient * scales, base=moved, target=moved)
    reach = np.abs(moved) / np.repeat(scales, 50)
    # Three additions in float32.
    assert reach.max() <= MAX_STEP_SCALES * (1 + 4 * np.finfo(np.float32).eps)
    assert reach.max() > 0.9 * min(MAX_STEP_SCALES, rate * 12 / 3)


def test_tensor_scales_are_each_tensors_root_mean_square_and_never_below_the_floor() -> None:
    random = np.random.default_rng(0)
    tensors = [random.standard_normal((4, 5)).astype(np.float32) * 3, np.zeros(7, np.float32), np.full((2, 2), 1e-3, np.float32)]
    naive = [math.sqrt(sum(float(w) ** 2 for w in tensors[0].reshape(-1)) / 20), 0.01, 0.01]
    np.testing.assert_allclose(tensor_scales(tensors, 0.01), naive, rtol=1e-12)


def test_global_scales_are_the_root_mean_square_over_all_weights() -> None:
    tensors = [np.full(3, 2.0, np.float32), np.full((1, 5), -1.0, np.float32)]
    np.testing.assert_allclose(global_scales(tensors, 0.01), [math.sqrt((3 * 4.0 + 5 * 1.0) / 8)] * 2, rtol=1e-15)
    assert global_scales(tensors, 10.0).tolist() == [10.0, 10.0]


def test_scales_of_large_weights_do_not_overflow_float32() -> None:
    np.testing.assert_allclose(tensor_scales([np.full(10, 1e30, np.float32)], 0.01), [float(np.float32(1e30))], rtol=1e-12)


def test_no_tensors_have_no_scales() -> None:
    assert tensor_scales([], 0.01).shape == global_scales([], 0.01).shape == (0,)
