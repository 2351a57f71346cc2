"""The guard between losses and weights: nothing that is NaN, infinite or huge passes, everything is counted, the running mean is as documented."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heron_common.numerics.zeroth_order import (
    CLIP_QUANTILE,
    ESTABLISHED_COUNT,
    MAX_STEP_SCALES,
    QUANTILE_OVER_MEDIAN,
    QUANTILE_RATE,
    SECOND_MOMENT_DECAY,
    FiniteDifference,
    RunningQuantile,
    SecondMoment,
    directional_derivatives,
    guard,
    relative_coefficients,
    sgd_coefficients,
)

POISON = [math.nan, math.inf, -math.inf]
MEMORY = round(1 / (1 - SECOND_MOMENT_DECAY))
UNKNOWN = SecondMoment()
NO_QUANTILE = RunningQuantile()


def known(quantile: float) -> RunningQuantile:
    return RunningQuantile.received(quantile)


@pytest.mark.parametrize("poison", POISON)
def test_a_derivative_that_is_not_finite_becomes_zero_and_is_counted(poison: float) -> None:
    guarded = guard(np.array([1.0, poison, -2.0, poison]), SecondMoment.received(4.0), quantile=known(2.0), clip_factor=10.0)
    assert guarded.values.tolist() == [1.0, 0.0, -2.0, 0.0]
    assert (guarded.num_non_finite, guarded.num_clipped) == (2, 0)


@pytest.mark.parametrize("moment", [UNKNOWN, SecondMoment.received(4.0), SecondMoment(2.0, 3, 12)])
@pytest.mark.parametrize("quantile", [NO_QUANTILE, known(2.0)])
@pytest.mark.parametrize("poison", POISON)
def test_a_step_of_nothing_but_poison_moves_nothing_and_teaches_nothing(
    poison: float, moment: SecondMoment, quantile: RunningQuantile
) -> None:
    guarded = guard(np.full(3, poison), moment, quantile=quantile, clip_factor=4.0)
    assert guarded.values.tolist() == [0.0, 0.0, 0.0]
    assert (guarded.num_non_finite, guarded.num_clipped) == (3, 0)
    assert (guarded.second_moment, guarded.quantile) == (moment, quantile)


@pytest.mark.invariant(21)
def test_clipping_starts_beyond_the_factor_times_the_running_quantile() -> None:
    limit = 4.0 * 3.0
    guarded = guard(np.array([limit, -limit, np.nextafter(limit, 99), -1e30, 1.0]), UNKNOWN, quantile=known(3.0), clip_factor=4.0)
    assert guarded.values.tolist() == [limit, -limit, limit, -limit, 1.0]
    assert (guarded.num_clipped, guarded.num_non_finite) == (2, 0)


def test_a_first_step_is_clipped_by_the_median_of_its_own_finite_derivatives() -> None:
    guarded = guard(np.array([1.0, -2.0, 3.0, 1e6, math.inf]), UNKNOWN, quantile=NO_QUANTILE, clip_factor=4.0)
    limit = 4.0 * QUANTILE_OVER_MEDIAN * 2.5
    assert guarded.values.tolist() == [1.0, -2.0, 3.0, limit, 0.0]
    assert (guarded.num_clipped, guarded.num_non_finite) == (1, 1)
    assert guarded.second_moment == SecondMoment(pytest.approx((1 + 4 + 9 + limit**2) / 4, rel=1e-12), 1, 4)


@pytest.mark.parametrize(("count", "limit"), [(ESTABLISHED_COUNT - 1, 4.0 * QUANTILE_OVER_MEDIAN * 2.0), (ESTABLISHED_COUNT, 4.0 * 0.3)])
def test_the_running_quantile_sets_the_limit_only_once_it_is_established(count: int, limit: float) -> None:
    guarded = guard(np.array([1.0, 2.0, 1e6]), UNKNOWN, quantile=RunningQuantile(0.3, count), clip_factor=4.0)
    assert guarded.values.tolist() == [min(1.0, limit), min(2.0, limit), limit]


def test_one_direction_a_step_is_not_called_an_outlier_by_itself_before_the_quantile_is_established() -> None:
    quantile, clipped = NO_QUANTILE, 0
    for size in np.geomspace(1e-6, 1e6, ESTABLISHED_COUNT):
        guarded = guard(np.array([size]), UNKNOWN, quantile=quantile, clip_factor=4.0)
        quantile, clipped = guarded.quantile, clipped + guarded.num_clipped
    assert (clipped, quantile.count) == (0, ESTABLISHED_COUNT)
    assert guard(np.array([1e9]), UNKNOWN, quantile=quantile, clip_factor=4.0).num_clipped == 1


def test_a_flat_loss_is_not_clipped_and_leaves_everything_at_zero() -> None:
    moment, quantile = UNKNOWN, NO_QUANTILE
    for _ in range(ESTABLISHED_COUNT + 1):
        guarded = guard(np.zeros(4), moment, quantile=quantile, clip_factor=4.0)
        moment, quantile = guarded.second_moment, guarded.quantile
        assert (guarded.values.tolist(), guarded.num_clipped, moment.value, quantile.value) == ([0.0] * 4, 0, 0.0, 0.0)
    assert guard(np.array([3.0]), moment, quantile=quantile, clip_factor=4.0).values.tolist() == [3.0]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("tail", ["normal", "laplace", "uniform"])
def test_the_running_quantile_finds_the_quantile_of_any_distribution_at_any_scale(tail: str, scale: float) -> None:
    random = np.random.default_rng(0)
    sizes = np.abs(getattr(random, tail)(0 if tail != "uniform" else -1, 1, 6000)) * scale
    quantile = NO_QUANTILE.updated(sizes[:1000])
    trace = []
    for start in range(1000, 6000, 10):
        quantile = quantile.updated(sizes[start : start + 10])
        trace.append(quantile.value)
    # The logarithm jitters by about the rate; its mean over the walk is the quantile to within a few hundredths.
    assert math.exp(float(np.mean(np.log(trace)))) == pytest.approx(float(np.quantile(sizes, CLIP_QUANTILE)), rel=0.1)
    assert quantile.count == 6000


def test_one_outlier_moves_the_quantile_by_a_bounded_factor_however_large_it_is() -> None:
    factor = math.exp(QUANTILE_RATE * CLIP_QUANTILE)
    assert known(2.0).updated(np.array([1e300])).value == pytest.approx(2.0 * factor)
    assert known(2.0).updated(np.array([2.1])).value == pytest.approx(2.0 * factor)


@pytest.mark.parametrize("nothing", [0.0, -1.0, *POISON])
def test_receiving_no_quantile_is_starting_anew(nothing: float) -> None:
    assert RunningQuantile.received(nothing) == NO_QUANTILE


def test_the_running_mean_is_plain_until_its_memory_is_full_and_forgets_exponentially_afterwards() -> None:
    squares = np.random.default_rng(0).gamma(2.0, 1.0, 3 * MEMORY)
    moment, naive = UNKNOWN, 0.0
    for step, square in enumerate(squares):
        moment = moment.updated(np.full(2, math.sqrt(square)))
        naive = float(squares[: step + 1].mean()) if step < MEMORY else SECOND_MOMENT_DECAY * naive + (1 - SECOND_MOMENT_DECAY) * square
        assert moment.value == pytest.approx(naive, rel=1e-9)
    assert (moment.steps, moment.count) == (3 * MEMORY, 6 * MEMORY)


def test_the_mean_is_made_of_the_clipped_finite_derivatives() -> None:
    guarded = guard(np.array([3.0, math.nan, -100.0]), SecondMoment.received(4.0), quantile=known(2.0), clip_factor=5.0)
    clipped = 5.0 * 2.0
    expected = SECOND_MOMENT_DECAY * 4.0 + (1 - SECOND_MOMENT_DECAY) * (3.0**2 + clipped**2) / 2
    assert guarded.second_moment.value == pytest.approx(expected, rel=1e-12)


def test_a_received_mean_counts_as_established_and_is_left_only_slowly() -> None:
    received = SecondMoment.received(100.0)
    assert (received.value, received.count >= ESTABLISHED_COUNT) == (100.0, True)
    assert received.updated(np.zeros(3)).value == pytest.approx(SECOND_MOMENT_DECAY * 100.0)


@pytest.mark.parametrize("nothing", [0.0, -1.0])
def test_receiving_no_mean_is_starting_anew(nothing: float) -> None:
    assert SecondMoment.received(nothing) == UNKNOWN


def test_an_outlier_raises_an_established_mean_by_a_bounded_factor() -> None:
    clip = 4.0
    after = guard(np.array([3e38]), SecondMoment.received(2.0), quantile=known(math.sqrt(2.0)), clip_factor=clip).second_moment.value
    assert after / 2.0 <= SECOND_MOMENT_DECAY + (1 - SECOND_MOMENT_DECAY) * clip**2 + 1e-12


def test_the_derivatives_that_came_in_are_left_alone() -> None:
    derivatives = np.array([1.0, math.nan, 1e9])
    derivatives.setflags(write=False)
    guard(derivatives, SecondMoment.received(1.0), quantile=known(1.0), clip_factor=2.0)


@pytest.mark.invariant(24)
@pytest.mark.parametrize("difference", list(FiniteDifference))
@pytest.mark.parametrize("figure", [0.0, 1e-12, 1.0, 1e12])
@pytest.mark.parametrize("poisoned", [0, 3, 8])
def test_poisoned_losses_never_reach_a_coefficient(poisoned: int, figure: float, difference: FiniteDifference) -> None:
    biggest = np.finfo(np.float32).max
    plus = np.array([math.nan, math.inf, -math.inf, biggest, -biggest, math.nan, biggest, math.inf], np.float32)
    minus = np.array([0.0, math.inf, math.inf, -biggest, biggest, -math.inf, -biggest, -math.inf], np.float32)
    plus[poisoned:] = np.linspace(1.0, 2.0, 8)[poisoned:]
    minus[poisoned:] = 1.5
    guarded = guard(
        directional_derivatives(plus, minus, direction_groups=8, smoothing_radius=1e-6, difference=difference),
        SecondMoment.received(figure),
        quantile=RunningQuantile.received(figure),
        clip_factor=4.0,
    )
    for coefficients in (
        sgd_coefficients(guarded.values, 1e6),
        relative_coefficients(guarded.values, guarded.second_moment.value, 1e6),
    ):
        assert np.isfinite(coefficients).all()
        assert float(np.abs(coefficients).sum()) <= MAX_STEP_SCALES * (1 + 1e-12)
    assert math.isfinite(guarded.second_moment.value)
    # Of the eight poisoned pairs three differ by a finite number, twice the largest float32.
    assert guarded.num_non_finite == {0: 0, 3: 3, 8: 5}[poisoned]


@pytest.mark.parametrize("poison", POISON)
def test_a_received_second_moment_that_is_not_finite_never_reaches_a_coefficient(poison: float) -> None:
    moment = SecondMoment.received(poison)
    for _ in range(3):
        guarded = guard(np.array([1.0, -2.0]), moment, quantile=NO_QUANTILE, clip_factor=4.0)
        moment = guarded.second_moment
        assert np.isfinite(relative_coefficients(guarded.values, moment.value, 1.0)).all()
    assert moment.value == pytest.approx(2.5)
