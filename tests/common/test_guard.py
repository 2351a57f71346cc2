"""The guard between losses and weights: nothing that is NaN, infinite or huge passes, everything is counted, the running mean is as documented."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heron_common.zeroth_order import (
    MAX_STEP_SCALES,
    SECOND_MOMENT_DECAY,
    FiniteDifference,
    directional_derivatives,
    guard,
    merge_second_moments,
    scalar_adaptive_coefficients,
    sgd_coefficients,
)

POISON = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("poison", POISON)
def test_a_derivative_that_is_not_finite_becomes_zero_and_is_counted(poison: float) -> None:
    guarded = guard(np.array([1.0, poison, -2.0, poison]), 4.0, 10.0)
    assert guarded.values.tolist() == [1.0, 0.0, -2.0, 0.0]
    assert (guarded.num_non_finite, guarded.num_clipped) == (2, 0)


@pytest.mark.parametrize("known", [0.0, 4.0])
@pytest.mark.parametrize("poison", POISON)
def test_a_step_of_nothing_but_poison_moves_nothing_and_teaches_nothing(poison: float, known: float) -> None:
    guarded = guard(np.full(3, poison), known, 4.0)
    assert guarded.values.tolist() == [0.0, 0.0, 0.0]
    assert (guarded.num_non_finite, guarded.num_clipped, guarded.second_moment) == (3, 0, known)


def test_clipping_starts_beyond_the_factor_times_the_known_root_mean_square() -> None:
    limit = 4.0 * math.sqrt(9.0)
    guarded = guard(np.array([limit, -limit, np.nextafter(limit, 99), -1e30, 1.0]), 9.0, 4.0)
    assert guarded.values.tolist() == [limit, -limit, limit, -limit, 1.0]
    assert (guarded.num_clipped, guarded.num_non_finite) == (2, 0)


def test_the_running_mean_decays_towards_the_mean_square_of_the_clipped_finite_derivatives() -> None:
    guarded = guard(np.array([3.0, math.nan, -100.0]), 4.0, 5.0)
    clipped = 5.0 * 2.0
    expected = SECOND_MOMENT_DECAY * 4.0 + (1 - SECOND_MOMENT_DECAY) * (3.0**2 + clipped**2) / 2
    assert guarded.second_moment == pytest.approx(expected, rel=1e-12)


def test_the_first_step_sets_the_mean_from_its_own_derivatives_clipped_by_their_median() -> None:
    guarded = guard(np.array([1.0, -2.0, 3.0, 1e6, math.inf]), 0.0, 4.0)
    limit = 4.0 * 2.5
    assert guarded.values.tolist() == [1.0, -2.0, 3.0, limit, 0.0]
    assert guarded.second_moment == pytest.approx((1 + 4 + 9 + limit**2) / 4, rel=1e-12)
    assert (guarded.num_clipped, guarded.num_non_finite) == (1, 1)


def test_a_flat_loss_is_not_clipped_and_leaves_the_mean_unknown() -> None:
    guarded = guard(np.zeros(4), 0.0, 4.0)
    assert (guarded.values.tolist(), guarded.num_clipped, guarded.second_moment) == ([0.0] * 4, 0, 0.0)


def test_the_running_mean_settles_at_the_mean_square() -> None:
    moment, values = 100.0, np.array([1.0, -3.0])
    for _ in range(600):
        moment = guard(values, moment, 100.0).second_moment
    # What is left of the start: 100 * 0.98^600, which is 5e-4.
    assert moment == pytest.approx(5.0, abs=100 * SECOND_MOMENT_DECAY**600)


def test_one_outlier_raises_the_running_mean_by_a_bounded_factor() -> None:
    clip = 4.0
    after = guard(np.array([3e38]), 2.0, clip).second_moment
    assert after / 2.0 <= SECOND_MOMENT_DECAY + (1 - SECOND_MOMENT_DECAY) * clip**2 + 1e-12


def test_the_derivatives_that_came_in_are_left_alone() -> None:
    derivatives = np.array([1.0, math.nan, 1e9])
    derivatives.setflags(write=False)
    guard(derivatives, 1.0, 2.0)


@pytest.mark.parametrize("difference", list(FiniteDifference))
@pytest.mark.parametrize("second_moment", [0.0, 1e-12, 1.0, 1e12])
@pytest.mark.parametrize("poisoned", [0, 3, 8])
def test_poisoned_losses_never_reach_a_coefficient(poisoned: int, second_moment: float, difference: FiniteDifference) -> None:
    biggest = np.finfo(np.float32).max
    plus = np.array([math.nan, math.inf, -math.inf, biggest, -biggest, math.nan, biggest, math.inf], np.float32)
    minus = np.array([0.0, math.inf, math.inf, -biggest, biggest, -math.inf, -biggest, -math.inf], np.float32)
    plus[poisoned:] = np.linspace(1.0, 2.0, 8)[poisoned:]
    minus[poisoned:] = 1.5
    guarded = guard(directional_derivatives(plus, minus, 8, 1e-6, difference), second_moment, 4.0)
    for coefficients in (
        sgd_coefficients(guarded.values, 1e6),
        scalar_adaptive_coefficients(guarded.values, guarded.second_moment, 1e6, 10),
    ):
        assert np.isfinite(coefficients).all()
        assert float(np.abs(coefficients).sum()) <= MAX_STEP_SCALES * (1 + 1e-12)
    assert np.isfinite(guarded.second_moment)
    if poisoned == 8:
        assert guarded.num_non_finite == 5


def test_second_moments_merge_by_weight_and_unknown_ones_do_not_count() -> None:
    merged = merge_second_moments(np.array([2.0, 0.0, 6.0]), np.array([1.0, 100.0, 3.0]))
    assert merged == pytest.approx((2.0 * 1 + 6.0 * 3) / 4)


@pytest.mark.parametrize(("moments", "weights"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([], [])])
def test_second_moments_without_knowledge_or_weight_merge_to_unknown(moments: list[float], weights: list[float]) -> None:
    assert merge_second_moments(np.array(moments), np.array(weights)) == 0.0


# BUG: `moments > 0` lets infinity through, so one client that reports inf sets the run's second moment to inf for good (steps become 0).
@pytest.mark.parametrize("poison", [*POISON, -1.0])
def test_a_poisoned_second_moment_of_one_client_does_not_count(poison: float) -> None:
    assert merge_second_moments(np.array([poison, 3.0]), np.array([1.0, 1.0])) == 3.0


# BUG: a NaN second moment (from an assignment) passes `second_moment <= 0` and turns zeroed derivatives into NaN coefficients.
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_an_assigned_second_moment_that_is_not_finite_never_reaches_a_coefficient(poison: float) -> None:
    guarded = guard(np.array([math.nan, math.nan]), poison, 4.0)
    assert np.isfinite(scalar_adaptive_coefficients(guarded.values, guarded.second_moment, 1.0, 5)).all()


# BUG: an infinite second moment never decays: 0.98 * inf stays inf, clips nothing and makes every later step 0.
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_an_assigned_second_moment_that_is_not_finite_is_replaced_by_the_first_good_step(poison: float) -> None:
    assert np.isfinite(guard(np.array([1.0, -2.0]), poison, 4.0).second_moment)
