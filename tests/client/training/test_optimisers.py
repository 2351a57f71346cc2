"""Client optimisers: step for step those of torch, over more weights than a block holds, and the same on an estimate as on its dense sum."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from heron_client.training.optimisers import Adam, GradientOptimiser, Momentum, Sgd, make_gradient_optimiser, make_zeroth_order_optimiser
from heron_common.algorithm.plan import ClientOptimiser, Plan
from heron_common.algorithm.presets import PRESETS
from heron_common.numerics.directions import DirectionDistribution, Directions, PerturbationSeed
from heron_common.numerics.layout import BLOCK
from heron_common.numerics.zeroth_order import GuardedDerivatives, RunningQuantile, SecondMoment
from tests.common.numerics.estimators import layout_of

SIZE = BLOCK + 777
STEPS = 20
RATE = 0.03
LAYOUT = layout_of(500, BLOCK - 400, 677)
SCALES = np.array([0.5, 2.0, 0.125])

Twin = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

TORCH: list[tuple[ClientOptimiser, dict[str, float], Twin]] = [
    (ClientOptimiser.SGD, {}, lambda p: torch.optim.SGD(p, RATE)),
    (ClientOptimiser.MOMENTUM, {}, lambda p: torch.optim.SGD(p, RATE, momentum=0.9)),
    (ClientOptimiser.MOMENTUM, {"momentum": 0.5}, lambda p: torch.optim.SGD(p, RATE, momentum=0.5)),
    (ClientOptimiser.ADAM, {}, lambda p: torch.optim.Adam(p, RATE)),
    (ClientOptimiser.ADAMW, {}, lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.0)),
    (ClientOptimiser.ADAMW, {"weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.1)),
]
IDS = [f"{optimiser.value}{''.join(f'-{k}={v}' for k, v in options.items())}" for optimiser, options, _ in TORCH]


def plan(optimiser: ClientOptimiser, **changes: Any) -> Plan:
    return dataclasses.replace(PRESETS["heron-paper"].plan, optimiser=optimiser, learning_rate=RATE, relative_step=RATE, **changes)


@functools.cache
def _gradients(step: int) -> np.ndarray:
    random = np.random.default_rng(step)
    found = (random.standard_normal(SIZE) * np.geomspace(1e-4, 1.0, SIZE)).astype(np.float32)
    found[::1000] = 0
    return found


def gradients(step: int) -> np.ndarray:
    """Return a gradient that differs from weight to weight by orders of magnitude, as real ones do, and rests on some weights; anew, for a step uses it up."""
    return _gradients(step).copy()


@pytest.mark.parametrize(("optimiser", "options", "twin"), TORCH, ids=IDS)
def test_every_step_is_torchs(optimiser: ClientOptimiser, options: dict[str, float], twin: Twin) -> None:
    theta = np.random.default_rng(99).standard_normal(SIZE).astype(np.float32)
    reference = torch.from_numpy(theta.copy())
    ours, theirs = make_gradient_optimiser(plan(optimiser, **options), SIZE), twin([reference])
    for step in range(STEPS):
        reference.grad = torch.from_numpy(gradients(step))
        theirs.step()
        ours.step(theta, gradients(step))
        # Weights are about 1 and each of twenty steps rounds a handful of operations, by 6e-8 each.
        np.testing.assert_allclose(theta, reference.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("optimiser", "options", "twin"), TORCH, ids=IDS)
def test_a_step_of_many_weights_is_the_steps_of_its_parts(optimiser: ClientOptimiser, options: dict[str, float], twin: Twin) -> None:
    cut = BLOCK // 2 + 333
    whole = np.random.default_rng(98).standard_normal(SIZE).astype(np.float32)
    parts = [whole[:cut].copy(), whole[cut:].copy()]
    chosen = plan(optimiser, **options)
    together, apart = make_gradient_optimiser(chosen, SIZE), [make_gradient_optimiser(chosen, part.size) for part in parts]
    for step in range(3):
        together.step(whole, gradients(step))
        for one, part, piece in zip(apart, parts, np.split(gradients(step), [cut]), strict=True):
            one.step(part, piece)
    assert whole.tobytes() == b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize(
    "make", [lambda: Sgd(RATE), lambda: Momentum(RATE, 0.9, 50), lambda: Adam(RATE, 0.0, 50)], ids=["sgd", "momentum", "adam"]
)
def test_a_gradient_of_zero_at_the_start_moves_nothing(make: Callable[[], GradientOptimiser]) -> None:
    theta = np.linspace(-1, 1, 50, dtype=np.float32)
    before = theta.tobytes()
    make().step(theta, np.zeros(50, np.float32))
    assert theta.tobytes() == before


def test_weight_decay_shrinks_weights_without_a_gradient_by_rate_times_decay() -> None:
    theta = np.linspace(-1, 1, 51, dtype=np.float32)
    expected = theta * np.float32(1 - RATE * 0.1)
    Adam(RATE, 0.1, 51).step(theta, np.zeros(51, np.float32))
    assert theta.tobytes() == expected.tobytes()


def test_only_adamw_decays() -> None:
    gradient, first, second = gradients(0)[:100], np.ones(100, np.float32), np.ones(100, np.float32)
    make_gradient_optimiser(plan(ClientOptimiser.ADAM, weight_decay=0.1), 100).step(first, gradient.copy())
    make_gradient_optimiser(plan(ClientOptimiser.ADAMW, weight_decay=0.0), 100).step(second, gradient.copy())
    assert first.tobytes() == second.tobytes()


def test_every_round_starts_with_fresh_moments() -> None:
    for optimiser in (ClientOptimiser.MOMENTUM, ClientOptimiser.ADAM):
        rounds = []
        for _ in range(2):
            theta = np.zeros(100, np.float32)
            fresh = make_gradient_optimiser(plan(optimiser), 100)
            for step in range(3):
                fresh.step(theta, gradients(step)[:100])
            rounds.append(theta.tobytes())
        assert rounds[0] == rounds[1]


def guarded(step: int, count: int) -> GuardedDerivatives:
    values = np.random.default_rng(1000 + step).standard_normal(count)
    return GuardedDerivatives(
        values, 0, num_non_finite=0, second_moment=SecondMoment(float(np.mean(values**2)), step + 1, count), quantile=RunningQuantile()
    )


@functools.cache
def dense_estimate(distribution: DirectionDistribution, step: int, count: int) -> np.ndarray:
    """Return (1/n) sum_g c_g v_g in float64 from directions written out."""
    directions = Directions(PerturbationSeed(step, 5), distribution, LAYOUT)
    scales = np.repeat(SCALES, [s.num_elements for s in LAYOUT.specs])
    table = [c * scales * directions.materialise(g).astype(np.float64) for g, c in enumerate(guarded(step, count).values)]
    return np.asarray(sum(table) / count)


@pytest.mark.parametrize("distribution", list(DirectionDistribution))
@pytest.mark.parametrize(("optimiser", "options", "twin"), TORCH[1:], ids=IDS[1:])
def test_a_step_on_an_estimate_is_torchs_step_on_its_dense_sum(
    optimiser: ClientOptimiser, options: dict[str, float], twin: Twin, distribution: DirectionDistribution
) -> None:
    theta = np.random.default_rng(97).standard_normal(SIZE).astype(np.float32)
    reference = torch.from_numpy(theta.astype(np.float64))
    chosen, count = dataclasses.replace(plan(optimiser, **options), distribution=distribution), 5
    ours, theirs = make_zeroth_order_optimiser(chosen, SIZE), twin([reference])
    for step in range(3):
        reference.grad = torch.from_numpy(dense_estimate(distribution, step, count).copy())
        theirs.step()
        coefficients = ours.step(
            theta, guarded(step, count), directions=Directions(PerturbationSeed(step, 5), distribution, LAYOUT), scales=SCALES
        )
        assert coefficients.size == 0
    # Adam divides an estimate near zero by its own size, which magnifies the estimate's float32 rounding: the typical weight is exact, none is far off.
    error = np.abs(theta - reference.numpy())
    assert float(np.median(error)) < 1e-6
    assert float(error.max()) < RATE


@pytest.mark.parametrize("distribution", list(DirectionDistribution))
@pytest.mark.parametrize("optimiser", [ClientOptimiser.SGD, ClientOptimiser.SCALAR_ADAPTIVE])
def test_a_step_by_coefficients_is_the_dense_step(optimiser: ClientOptimiser, distribution: DirectionDistribution) -> None:
    theta = np.random.default_rng(96).standard_normal(SIZE).astype(np.float32)
    before, count = theta.astype(np.float64), 6
    chosen = dataclasses.replace(plan(optimiser), distribution=distribution)
    found = guarded(0, count)
    coefficients = make_zeroth_order_optimiser(chosen, SIZE).step(
        theta, found, directions=Directions(PerturbationSeed(0, 5), distribution, LAYOUT), scales=SCALES
    )
    length = RATE if optimiser is ClientOptimiser.SGD else RATE * np.sqrt(count / found.second_moment.value)
    np.testing.assert_allclose(coefficients, -length * found.values / count, rtol=1e-12)
    # One float32 rounding of a weight for each direction.
    np.testing.assert_allclose(theta, before - length * dense_estimate(distribution, 0, count), atol=count * 2.0**-24 * 8)


def test_a_step_in_one_layer_leaves_the_others_alone() -> None:
    chosen, found = plan(ClientOptimiser.SCALAR_ADAPTIVE), guarded(0, 6)
    theta = np.ones(SIZE, np.float32)
    directions = Directions(PerturbationSeed(0, 5), DirectionDistribution.RADEMACHER, LAYOUT)
    make_zeroth_order_optimiser(chosen, SIZE).step(theta, found, directions=directions, scales=np.array([0.0, 2.0, 0.0]))
    first, last = LAYOUT.offsets[1], LAYOUT.offsets[2]
    assert np.array_equal(np.flatnonzero(theta != 1)[[0, -1]], [first, last - 1])
