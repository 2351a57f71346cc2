"""The gradient estimate against closed forms: mean, second moment, groups, cosine (invariants 1, 2, 5, 6 and 7 of the mathematics)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.zeroth_order import FiniteDifference, directional_derivatives
from tests.common.numerics.estimators import DIMENSION, Quadratic, assert_mean, direction_table, quadratic

RADEMACHER, GAUSSIAN, SPHERE = DirectionDistribution
ALL = list(DirectionDistribution)
FORWARD, CENTRAL = FiniteDifference
COUNT = 8192
MU = 0.6
"""Large on purpose: on a quadratic no limit of small mu is needed, and terms in mu must show."""
THETA = np.array([0.3, -1.2, 0.8, 0.1, -0.4, 1.5])


def derivatives(loss: Quadratic, u: np.ndarray, mu: float, difference: FiniteDifference) -> np.ndarray:
    """Return c for each row of `u`, every direction with a group of its own."""
    minus = loss(np.tile(THETA, (len(u), 1))) if difference is FORWARD else loss(THETA - mu * u)
    return directional_derivatives(loss(THETA + mu * u), minus, direction_groups=len(u), smoothing_radius=mu, difference=difference)


def estimates(distribution: DirectionDistribution, difference: FiniteDifference, loss: Quadratic, mu: float = MU) -> np.ndarray:
    """Return COUNT estimates of one direction each."""
    u = direction_table(distribution, COUNT)
    return derivatives(loss, u, mu, difference)[:, None] * u


@pytest.mark.invariant(1)
@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("difference", [FORWARD, CENTRAL])
def test_the_estimate_is_unbiased_on_a_quadratic_without_a_limit_of_small_mu(
    distribution: DirectionDistribution, difference: FiniteDifference
) -> None:
    loss = quadratic()
    assert_mean(estimates(distribution, difference, loss), loss.gradient(THETA))


def relative_variance(distribution: DirectionDistribution) -> int:
    return DIMENSION + 1 if distribution is GAUSSIAN else DIMENSION - 1


@pytest.mark.invariant(2)
@pytest.mark.parametrize("distribution", ALL)
def test_the_squared_error_of_a_central_estimate_is_the_closed_form(distribution: DirectionDistribution) -> None:
    loss = quadratic()
    gradient = loss.gradient(THETA)
    squared = np.square(estimates(distribution, CENTRAL, loss) - gradient).sum(axis=1)
    assert_mean(squared, relative_variance(distribution) * float(gradient @ gradient))


def forward_extra(distribution: DirectionDistribution, hessian: np.ndarray) -> float:
    """Return the second moment that a forward difference adds on a quadratic, in closed form."""
    d, trace, frobenius = DIMENSION, float(np.trace(hessian)), float(np.square(hessian).sum())
    if distribution is RADEMACHER:
        off_diagonal = frobenius - float(np.square(np.diag(hessian)).sum())
        return MU**2 / 4 * d * (trace**2 + 2 * off_diagonal)
    if distribution is GAUSSIAN:
        return MU**2 / 4 * (d + 4) * (trace**2 + 2 * frobenius)
    return MU**2 / 4 * d**2 / (d + 2) * (trace**2 + 2 * frobenius)


@pytest.mark.invariant(2)
@pytest.mark.parametrize("distribution", ALL)
def test_a_forward_difference_adds_exactly_the_curvature_term_to_the_squared_error(distribution: DirectionDistribution) -> None:
    loss = quadratic(curvature=12.0)
    gradient = loss.gradient(THETA)
    squared = np.square(estimates(distribution, FORWARD, loss) - gradient).sum(axis=1)
    without = relative_variance(distribution) * float(gradient @ gradient)
    assert_mean(squared, without + forward_extra(distribution, loss.hessian))
    with pytest.raises(AssertionError):  # The term is large enough for this test to see it missing.
        assert_mean(squared, without)


@pytest.mark.invariant(2)
@pytest.mark.parametrize("distribution", ALL)
def test_a_central_difference_adds_no_curvature_term(distribution: DirectionDistribution) -> None:
    loss = quadratic(curvature=3.0)
    u = direction_table(distribution, 512)
    exact = u @ loss.gradient(THETA)
    np.testing.assert_allclose(derivatives(loss, u, MU, CENTRAL), exact, rtol=1e-9, atol=1e-9)
    assert np.abs(derivatives(loss, u, MU, FORWARD) - exact).max() > 0.1


@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("groups", [4, 32])
def test_the_squared_error_falls_with_the_number_of_groups(distribution: DirectionDistribution, groups: int) -> None:
    loss = quadratic()
    gradient = loss.gradient(THETA)
    averaged = estimates(distribution, CENTRAL, loss).reshape(-1, groups, DIMENSION).mean(axis=1)
    squared = np.square(averaged - gradient).sum(axis=1)
    assert_mean(squared, relative_variance(distribution) * float(gradient @ gradient) / groups)


@pytest.mark.invariant(2)
def test_orthonormal_probes_as_many_as_weights_give_the_exact_gradient() -> None:
    loss = quadratic()
    random = np.random.default_rng(4).standard_normal((DIMENSION, DIMENSION))
    u = np.linalg.qr(random)[0] * math.sqrt(DIMENSION)
    c = derivatives(loss, u, MU, CENTRAL)
    np.testing.assert_allclose((c[:, None] * u).mean(axis=0), loss.gradient(THETA), rtol=1e-9)


@pytest.mark.invariant(5)
@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_group_of_samples_has_its_own_direction_and_its_own_mean_gradient(groups: int) -> None:
    # Per-sample losses g_i . theta: with Rademacher directions E|ghat - gbar|^2 = (d - 1) sum_k |g_k|^2 / G^2, g_k the mean of group k.
    samples, steps = 16, 1024
    gradients = np.random.default_rng(5).standard_normal((samples, DIMENSION)) + 0.5
    u = direction_table(RADEMACHER, COUNT)[: groups * (COUNT // 16)].reshape(-1, groups, DIMENSION)[:steps]
    per_group = samples // groups
    squared = []
    for step_directions in u:
        shift = MU * np.repeat(step_directions, per_group, axis=0)
        plus = ((THETA + shift) * gradients).sum(axis=1)
        c = directional_derivatives(plus, gradients @ THETA, direction_groups=groups, smoothing_radius=MU, difference=FORWARD)
        squared.append(np.square((c[:, None] * step_directions).mean(axis=0) - gradients.mean(axis=0)).sum())
    group_means = gradients.reshape(groups, per_group, DIMENSION).mean(axis=1)
    assert_mean(np.array(squared), (DIMENSION - 1) * float(np.square(group_means).sum()) / groups**2)


@pytest.mark.invariant(7)
@pytest.mark.parametrize("distribution", ALL)
def test_the_squared_cosine_of_one_direction_with_the_gradient_is_one_over_d(distribution: DirectionDistribution) -> None:
    loss = quadratic()
    gradient = loss.gradient(THETA)
    ghat = estimates(distribution, CENTRAL, loss)
    cosine = ghat @ gradient / np.linalg.norm(ghat, axis=1) / np.linalg.norm(gradient)
    assert_mean(np.square(cosine), 1 / DIMENSION)


@pytest.mark.invariant(7)
@pytest.mark.parametrize("distribution", ALL)
def test_the_cosine_with_the_gradient_tends_to_one_with_many_groups(distribution: DirectionDistribution) -> None:
    loss = quadratic()
    gradient = loss.gradient(THETA)
    means = estimates(distribution, CENTRAL, loss).reshape(-1, 1024, DIMENSION).mean(axis=1)
    cosine = means @ gradient / np.linalg.norm(means, axis=1) / np.linalg.norm(gradient)
    # 1 - cos is half the squared sideways error, on average at most (d + 1) / (2 G); ten times that for the worst of eight.
    assert np.all(1 - cosine < 10 * (DIMENSION + 1) / (2 * 1024))


@pytest.mark.invariant(6)
@pytest.mark.parametrize("difference", [FORWARD, CENTRAL])
def test_the_unit_sphere_convention_gives_the_same_estimate_after_converting_mu(difference: FiniteDifference) -> None:
    # The other convention: u on the unit sphere, ghat = (d / mu) [l(theta + mu u) - l(theta)] u, with mu larger by sqrt(d).
    loss = quadratic()
    u = direction_table(SPHERE, 256)
    unit, mu = u / math.sqrt(DIMENSION), MU * math.sqrt(DIMENSION)
    other, reach = (THETA[None], mu) if difference is FORWARD else (THETA - mu * unit, 2 * mu)
    scalars = (loss(THETA + mu * unit) - loss(other)) / reach
    naive = DIMENSION * scalars[:, None] * unit
    np.testing.assert_allclose(derivatives(loss, u, MU, difference)[:, None] * u, naive, rtol=1e-9, atol=1e-9)
