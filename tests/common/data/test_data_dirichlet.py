"""Gamma and Dirichlet variates: moments of the closed forms, independence of how many are drawn, bits fixed for ever."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heron_common.data.dirichlet import dirichlet, log_gamma_variates
from heron_common.numerics.directions import PerturbationSeed

COUNT = 8000
SEED = PerturbationSeed(11, 12)


@pytest.mark.parametrize("shape", [0.05, 0.3, 0.99, 1.0, 2.5, 40.0])
def test_gamma_variates_have_mean_and_variance_equal_to_their_shape(shape: float) -> None:
    values = np.exp(log_gamma_variates(SEED, shape, COUNT))
    # The fourth central moment is 3 k^2 + 6 k, so a sample variance has variance (2 k^2 + 6 k) / n.
    assert abs(values.mean() - shape) < 4 * math.sqrt(shape / COUNT)
    assert abs(values.var() - shape) < 4 * math.sqrt((2 * shape**2 + 6 * shape) / COUNT)


@pytest.mark.parametrize("shape", [0.001, 0.05, 0.3, 1.0, 7.0, 1e6])
def test_logarithms_have_the_distribution_of_scipys_gamma(shape: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the oracle of this test")
    result = stats.kstest(log_gamma_variates(SEED, shape, 3000), stats.loggamma(shape).cdf)
    assert result.pvalue > 1e-3


def test_the_smallest_shape_gives_finite_logarithms_and_proportions() -> None:
    assert all(math.isfinite(value) for value in log_gamma_variates(SEED, 0.001, 1000))
    assert math.fsum(dirichlet(SEED, 0.001, 1000)) == pytest.approx(1.0)


@pytest.mark.parametrize(("alpha", "count"), [(0.1, 4), (1.0, 10), (50.0, 3)])
def test_proportions_add_up_to_one_and_have_the_moments_of_the_distribution(alpha: float, count: int) -> None:
    draws = np.array([dirichlet(PerturbationSeed(key, 0), alpha, count) for key in range(1500)])
    assert draws.min() >= 0
    np.testing.assert_allclose(draws.sum(axis=1), 1.0, rtol=1e-12)
    mean = 1 / count
    variance = mean * (1 - mean) / (count * alpha + 1)
    assert np.abs(draws.mean(axis=0) - mean).max() < 4.5 * math.sqrt(variance / len(draws))
    kurtosis = np.mean((draws - mean) ** 4, axis=0)
    assert (np.abs(np.mean((draws - mean) ** 2, axis=0) - variance) < 4.5 * np.sqrt(kurtosis / len(draws))).all()


def test_variates_do_not_depend_on_how_many_are_drawn() -> None:
    assert log_gamma_variates(SEED, 0.4, 500)[:7] == log_gamma_variates(SEED, 0.4, 7)


def test_another_seed_gives_other_proportions() -> None:
    assert dirichlet(SEED, 1.0, 4) != dirichlet(PerturbationSeed(11, 13), 1.0, 4)


def test_proportions_never_change() -> None:
    # The C library's logarithm may differ in the last place; anything more would move samples between clients.
    assert dirichlet(PerturbationSeed(1, 2), 0.5, 4) == pytest.approx(
        [0.15970485151428884, 0.3594233833222299, 0.0021165011504209867, 0.4787552640130603], rel=1e-12
    )
