"""Finite differences of per-sample losses: exact on linear losses, errors of the right order on cubics, group means in float64 (invariant 3)."""

from __future__ import annotations

import numpy as np
import pytest

from heron_common.numerics.directions import DirectionDistribution, Directions, PerturbationSeed
from heron_common.numerics.zeroth_order import FiniteDifference, directional_derivatives, sgd_coefficients
from tests.common.numerics.estimators import DIMENSION, Quadratic, assert_mean, direction_table, layout_of, quadratic

FORWARD, CENTRAL = FiniteDifference
ALL = list(DirectionDistribution)
THETA = np.array([0.5, -1.25, 0.75, 0.125, -0.5, 1.5])


@pytest.mark.invariant(3)
@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("mu", [1e-6, 1.0, 1e6])
def test_both_differences_are_exact_on_a_linear_loss_for_any_mu(distribution: DirectionDistribution, mu: float) -> None:
    gradient = np.array([1.0, -2.0, 0.5, 3.0, -0.25, 0.75])
    u = direction_table(distribution, 64)
    base, plus, minus = gradient @ THETA, (THETA + mu * u) @ gradient, (THETA - mu * u) @ gradient
    # Losses are of size 1 + mu; float64 rounding of either divided by mu.
    rounding = 1e-14 * (1 + mu) / mu
    forward = directional_derivatives(plus, np.full(64, base), direction_groups=64, smoothing_radius=mu, difference=FORWARD)
    central = directional_derivatives(plus, minus, direction_groups=64, smoothing_radius=mu, difference=CENTRAL)
    np.testing.assert_allclose(forward, u @ gradient, rtol=1e-12, atol=10 * rounding)
    np.testing.assert_allclose(central, u @ gradient, rtol=1e-12, atol=10 * rounding)


def cubic_error(u: np.ndarray, mu: float, difference: FiniteDifference) -> np.ndarray:
    """Return the error of c on f(x) = sum_i x_i^3, whose gradient is 3 x^2."""
    plus, base, minus = (np.power(THETA + shift * u, 3).sum(axis=1) for shift in (mu, 0.0, -mu))
    c = directional_derivatives(
        plus, base if difference is FORWARD else minus, direction_groups=len(u), smoothing_radius=mu, difference=difference
    )
    return np.asarray(c - u @ (3 * THETA**2))


@pytest.mark.invariant(3)
@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize(("difference", "order"), [(FORWARD, 1), (CENTRAL, 2)])
def test_the_error_on_a_cubic_has_the_order_of_its_difference(
    distribution: DirectionDistribution, difference: FiniteDifference, order: int
) -> None:
    u = direction_table(distribution, 64)
    coarse, fine = cubic_error(u, 2e-3, difference), cubic_error(u, 1e-3, difference)
    # Forward: mu/2 u'Hu plus a term mu^2; where u'Hu nearly vanishes that term leads, so only the median must have the order.
    assert abs(float(np.median(coarse / fine)) - 2**order) < 0.05


@pytest.mark.invariant(3)
def test_the_central_error_on_a_cubic_is_exactly_the_third_derivative_term() -> None:
    u = direction_table(DirectionDistribution.GAUSSIAN, 64)
    mu = 0.25
    np.testing.assert_allclose(cubic_error(u, mu, CENTRAL), mu**2 * np.power(u, 3).sum(axis=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 3, 12])
def test_each_groups_derivative_is_the_mean_over_its_own_consecutive_samples(groups: int) -> None:
    generator = np.random.default_rng(0)
    plus, minus = generator.standard_normal((2, 12)).astype(np.float32)
    size = 12 // groups
    naive = [sum((float(plus[i]) - float(minus[i])) / 0.1 for i in range(g * size, (g + 1) * size)) / size for g in range(groups)]
    np.testing.assert_allclose(
        directional_derivatives(plus, minus, direction_groups=groups, smoothing_radius=0.1, difference=FORWARD), naive, rtol=1e-12
    )
    np.testing.assert_allclose(
        directional_derivatives(plus, minus, direction_groups=groups, smoothing_radius=0.1, difference=CENTRAL),
        np.array(naive) / 2,
        rtol=1e-12,
    )


def test_small_differences_of_large_losses_survive_because_means_are_taken_in_float64() -> None:
    # In float32 the sum of 4096 losses near 1000 has a spacing of 0.25; the true mean difference is 2^-13.
    minus = np.full(4096, 1000.0, np.float32)
    plus = minus + np.float32(2**-13)
    assert directional_derivatives(plus, minus, direction_groups=1, smoothing_radius=1.0, difference=FORWARD)[0] == 2**-13


def test_one_bad_sample_spoils_its_own_group_only() -> None:
    plus = np.array([1.0, np.nan, 3.0, np.inf, 5.0, 6.0], np.float32)
    minus = np.array([0.0, 0.0, 1.0, np.inf, 4.0, 4.0], np.float32)
    c = directional_derivatives(plus, minus, direction_groups=3, smoothing_radius=0.5, difference=FORWARD)
    assert np.isnan(c[:2]).all()
    assert c[2] == 1.5 / 0.5


@pytest.mark.invariant(1)
@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("difference", [FORWARD, CENTRAL])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.25, 2.0)], ids=["unit", "per-tensor"])
def test_a_step_through_add_descends_the_gradient_times_the_squared_scales(
    distribution: DirectionDistribution, difference: FiniteDifference, scales: tuple[float, float]
) -> None:
    """E[ghat] = S^2 grad, through the package's own path: add, losses, derivatives, coefficients, add."""
    loss, groups, mu, rate, per_tensor = quadratic(7), 4, 0.5, 2.0**-12, np.array(scales)
    theta = THETA.astype(np.float32)
    steps = []
    for step in range(240):
        directions = Directions(PerturbationSeed(step, 9), distribution, layout_of(2, DIMENSION - 2))
        plus = _group_losses(loss, directions, groups, mu * per_tensor, theta)
        minus = (
            loss(theta[None].astype(np.float64))
            if difference is FORWARD
            else _group_losses(loss, directions, groups, -mu * per_tensor, theta)
        )
        derivatives = directional_derivatives(
            plus, np.broadcast_to(minus, groups), direction_groups=groups, smoothing_radius=mu, difference=difference
        )
        moved = np.zeros_like(theta)
        for group, coefficient in enumerate(sgd_coefficients(derivatives, rate)):
            directions.add(group, coefficient * per_tensor, base=moved, target=moved)
        steps.append(moved / -rate)
    assert_mean(np.array(steps, np.float64), np.repeat(per_tensor**2, (2, DIMENSION - 2)) * loss.gradient(THETA))


def _group_losses(loss: Quadratic, directions: Directions, groups: int, magnitudes: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return the loss at theta + v_g for every group, perturbing in a second buffer as a client does."""
    points = np.empty((groups, theta.size), np.float32)
    for group in range(groups):
        directions.add(group, magnitudes, base=theta, target=points[group])
    return loss(points.astype(np.float64))
