"""The estimate's variance with P directions a group and G groups, and what a head adds to it (invariants 2, 4 and 5)."""

from __future__ import annotations

import numpy as np
import pytest

from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.zeroth_order import FiniteDifference, directional_derivatives
from tests.common.numerics.estimators import DIMENSION, Quadratic, assert_mean, direction_table, quadratic, standard_error

RADEMACHER, GAUSSIAN, SPHERE = DirectionDistribution
ALL = list(DirectionDistribution)
FORWARD, CENTRAL = FiniteDifference
COUNT = 8192
MU = 0.4
THETA = np.array([0.3, -1.2, 0.8, 0.1, -0.4, 1.5])
SAMPLES = 16
STEPS = 1024


def relative_variance(distribution: DirectionDistribution) -> int:
    return DIMENSION + 1 if distribution is GAUSSIAN else DIMENSION - 1


def curvature_moment(distribution: DirectionDistribution, hessian: np.ndarray) -> float:
    """Return E|(mu/2) (u'Hu) u|^2, what one forward difference adds to the second moment on a quadratic."""
    d, trace, frobenius = DIMENSION, float(np.trace(hessian)), float(np.square(hessian).sum())
    if distribution is RADEMACHER:
        return MU**2 / 4 * d * (trace**2 + 2 * (frobenius - float(np.square(np.diag(hessian)).sum())))
    return MU**2 / 4 * (trace**2 + 2 * frobenius) * (d + 4 if distribution is GAUSSIAN else d**2 / (d + 2))


@pytest.mark.invariant(2)
@pytest.mark.parametrize("difference", [FORWARD, CENTRAL])
@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("num_directions", [1, 2, 8])
def test_directions_of_a_group_divide_its_squared_error(
    num_directions: int, distribution: DirectionDistribution, difference: FiniteDifference
) -> None:
    loss = quadratic(curvature=6.0)
    gradient = loss.gradient(THETA)
    u = direction_table(distribution, COUNT)[: STEPS * num_directions].reshape(STEPS, num_directions, DIMENSION)
    squared = np.array([np.square(estimate(loss, directions, difference) - gradient).sum() for directions in u])
    once = relative_variance(distribution) * float(gradient @ gradient)
    once += curvature_moment(distribution, loss.hessian) if difference is FORWARD else 0.0
    assert_mean(squared, once / num_directions)


def estimate(loss: Quadratic, directions: np.ndarray, difference: FiniteDifference) -> np.ndarray:
    """Return (1/P) sum_p c_p u_p of one group whose samples all have the same loss, pass after pass as a client makes them."""
    total = np.zeros(DIMENSION)
    for u in directions:
        plus = np.full(SAMPLES, loss((THETA + MU * u)[None])[0])
        minus = np.full(SAMPLES, loss((THETA if difference is FORWARD else THETA - MU * u)[None])[0])
        (c,) = directional_derivatives(plus, minus, direction_groups=1, smoothing_radius=MU, difference=difference)
        total += c * u
    return total / len(directions)


GRADIENT = np.array([0.5, -1.0, 0.25, 0.0, 0.75, -0.5])
SPREAD = 1.5
"""Standard deviation of each component of a sample's gradient."""


def squared_errors(distribution: DirectionDistribution, groups: int, num_directions: int, difference: FiniteDifference) -> np.ndarray:
    """Return |ghat - gbar|^2 of steps on fresh batches, gbar the batch's mean gradient; sample i's loss is g_i . theta."""
    random = np.random.default_rng(groups)
    per_step = groups * num_directions
    table = direction_table(distribution, STEPS * 8)[: STEPS * per_step].reshape(STEPS, num_directions, groups, DIMENSION)
    found = []
    for directions in table:
        gradients = GRADIENT + SPREAD * random.standard_normal((SAMPLES, DIMENSION))
        total = np.zeros(DIMENSION)
        for u in directions:  # One pass over the batch, in which every group has a direction of its own.
            shift = MU * np.repeat(u, SAMPLES // groups, axis=0)
            plus = ((THETA + shift) * gradients).sum(axis=1)
            minus = gradients @ THETA if difference is FORWARD else ((THETA - shift) * gradients).sum(axis=1)
            total += directional_derivatives(plus, minus, direction_groups=groups, smoothing_radius=MU, difference=difference) @ u
        found.append(np.square(total / per_step - gradients.mean(axis=0)).sum())
    return np.array(found)


def expected_error(distribution: DirectionDistribution, groups: int, num_directions: int) -> float:
    """Return (d + 1 or d - 1) (|g|^2 / G + s^2 / B) / P, s^2 the variance of a sample's gradient."""
    variance = DIMENSION * SPREAD**2
    return relative_variance(distribution) * (float(GRADIENT @ GRADIENT) / groups + variance / SAMPLES) / num_directions


@pytest.mark.invariant(5)
@pytest.mark.parametrize("difference", [FORWARD, CENTRAL])
@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize(("groups", "num_directions"), [(1, 1), (4, 1), (1, 4), (4, 2)])
def test_groups_divide_the_signals_share_of_the_squared_error_and_directions_all_of_it(
    groups: int, num_directions: int, distribution: DirectionDistribution, difference: FiniteDifference
) -> None:
    assert_mean(squared_errors(distribution, groups, num_directions, difference), expected_error(distribution, groups, num_directions))


@pytest.mark.invariant(5)
@pytest.mark.parametrize("groups", [4, 8])
def test_the_ratio_of_variances_with_and_without_groups_is_the_closed_form(groups: int) -> None:
    grouped, whole = (squared_errors(RADEMACHER, g, 1, FORWARD) for g in (groups, 1))
    noise = DIMENSION * SPREAD**2 / SAMPLES
    signal = float(GRADIENT @ GRADIENT)
    ratio = float(grouped.mean() / whole.mean())
    # The relative errors of numerator and denominator add in squares.
    error = ratio * float(np.hypot(standard_error(grouped) / grouped.mean(), standard_error(whole) / whole.mean()))
    assert abs(ratio - (signal / groups + noise) / (signal + noise)) < 5 * error
    assert ratio < 1 - 5 * error


FRONT = 2
"""Weights of the front; the other four are the head's."""


def front_moment(distribution: DirectionDistribution, front: np.ndarray, head: np.ndarray) -> float:
    """Return E|ghat_front|^2 when one scalar is shared: (d_c + 2)|g_c|^2 + d_c |g_a|^2 for Gaussian directions."""
    own, other = float(front @ front), float(head @ head)
    if distribution is RADEMACHER:
        return len(front) * (own + other)
    together = (len(front) + 2) * own + len(front) * other
    return together if distribution is GAUSSIAN else together * DIMENSION / (DIMENSION + 2)


@pytest.mark.invariant(4)
@pytest.mark.parametrize("distribution", ALL)
def test_a_head_that_shares_the_fronts_scalar_leaks_its_own_gradient_into_the_fronts_estimate(distribution: DirectionDistribution) -> None:
    gradient = np.array([0.5, -1.0, 2.0, 0.3, -1.5, 0.7])
    u = direction_table(distribution, COUNT)
    c = directional_derivatives(
        (THETA + MU * u) @ gradient, np.full(COUNT, THETA @ gradient), direction_groups=COUNT, smoothing_radius=MU, difference=FORWARD
    )
    squared = np.square(c[:, None] * u[:, :FRONT]).sum(axis=1)
    assert_mean(squared, front_moment(distribution, gradient[:FRONT], gradient[FRONT:]))


@pytest.mark.invariant(4)
@pytest.mark.parametrize("distribution", [RADEMACHER, GAUSSIAN])
def test_with_the_head_frozen_nothing_leaks(distribution: DirectionDistribution) -> None:
    gradient = np.array([0.5, -1.0, 2.0, 0.3, -1.5, 0.7])
    # Directions of a front alone are the beginning of those of front and head, see test_direction_reproducibility.
    u = direction_table(distribution, COUNT) * (np.arange(DIMENSION) < FRONT)
    c = directional_derivatives(
        (THETA + MU * u) @ gradient, np.full(COUNT, THETA @ gradient), direction_groups=COUNT, smoothing_radius=MU, difference=FORWARD
    )
    squared = np.square(c[:, None] * u[:, :FRONT]).sum(axis=1)
    alone = front_moment(distribution, gradient[:FRONT], np.zeros(1))
    assert_mean(squared, alone)
    with pytest.raises(AssertionError):  # What a head would add is large enough for this test to see it.
        assert_mean(squared, front_moment(distribution, gradient[:FRONT], gradient[FRONT:]))
