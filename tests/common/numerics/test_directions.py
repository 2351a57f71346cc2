"""Directions: bits equal to a naive Philox, unit covariance, exactly one float32 addition per weight, and no stream used twice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from heron_common.ids import RoundReference
from heron_common.numerics.directions import DirectionDistribution, Directions, PerturbationSeed, derive_seed, raw_words
from heron_common.numerics.layout import BLOCK, FlatLayout
from heron_common.numerics.tensors import DType, TensorSpec
from tests.common.numerics.philox import philox_block, rademacher_sign, stream_word

SEED = PerturbationSeed(0x0123456789ABCDEF, 0xFEDCBA9876543210)
ALL = list(DirectionDistribution)
RADEMACHER = DirectionDistribution.RADEMACHER


def layout_of(*sizes: int) -> FlatLayout:
    return FlatLayout(tuple(TensorSpec(f"t{i}", DType.FLOAT32, (size,)) for i, size in enumerate(sizes)))


def words_of(direction: np.ndarray) -> list[int]:
    """Return the 64-bit words whose set bits are this direction's minus signs."""
    return [int(w) for w in np.packbits(direction < 0, bitorder="little").view("<u8")]


def test_the_naive_philox_matches_the_published_known_answers() -> None:
    # Random123's kat_vectors, philox4x64 with 10 rounds.
    assert philox_block((0, 0, 0, 0), (0, 0)) == (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)
    ones = (1 << 64) - 1
    assert philox_block((ones,) * 4, (ones, ones)) == (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)


def test_raw_words_are_the_naive_philox_stream() -> None:
    assert raw_words(SEED, 11).tolist() == [stream_word(SEED, 0, i) for i in range(11)]


def test_a_short_stream_is_the_beginning_of_a_long_one() -> None:
    assert np.array_equal(raw_words(SEED, 5), raw_words(SEED, 1000)[:5])


@pytest.mark.parametrize("group", [0, 1, 7, 2**32 + 1])
def test_rademacher_signs_are_the_naive_philox_bits(group: int) -> None:
    direction = Directions(SEED, RADEMACHER, layout_of(70, 1, 400)).materialise(group)
    assert direction.tolist() == [rademacher_sign(SEED, group, i) for i in range(471)]


def test_rademacher_signs_around_a_block_boundary_are_the_naive_philox_bits() -> None:
    direction = Directions(SEED, RADEMACHER, layout_of(BLOCK - 3, 2 * BLOCK + 10)).materialise(2)
    for first in (BLOCK - 64, BLOCK, 2 * BLOCK - 64, 2 * BLOCK, 3 * BLOCK - 64):
        assert words_of(direction[first : first + 64]) == [stream_word(SEED, 2, first // 64)], f"weights from {first}"
    assert direction[-7:].tolist() == [rademacher_sign(SEED, 2, i) for i in range(3 * BLOCK, 3 * BLOCK + 7)]


@pytest.mark.invariant(9)
def test_golden_words_of_a_direction_never_change() -> None:
    direction = Directions(PerturbationSeed(1, 2), RADEMACHER, layout_of(256)).materialise(0)
    assert words_of(direction) == [0x4F2F4313B5536B09, 0x5B617BE3219FF32A, 0x097293476F9275CB, 0xF63F3BF4962C3942]


@pytest.mark.invariant(9)
def test_golden_seed_of_a_step_never_changes() -> None:
    seed = derive_seed(7, "a", round_reference=RoundReference(3, 1), purpose="direction", index=0)
    assert seed == PerturbationSeed(9459848223842373431, 10793969223587270037)


def test_every_part_of_a_seed_matters() -> None:
    arguments = itertools.product((7, 71), ("a", "b", "a1"), ((3, 1), (31, 1), (3, 11)), ("direction", "sample_order"), (0, 1, 10))
    seeds = [
        derive_seed(run, client, round_reference=RoundReference(*where), purpose=purpose, index=index)
        for run, client, where, purpose, index in arguments
    ]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 3 * 2 * 3


@pytest.mark.parametrize("distribution", ALL)
def test_groups_steps_clients_rounds_and_attempts_have_uncorrelated_directions(distribution: DirectionDistribution) -> None:
    d = 4096
    steps = [("ann", (0, 0), 0), ("ann", (0, 0), 1), ("bob", (0, 0), 0), ("ann", (1, 0), 0), ("ann", (0, 1), 0)]
    seeds = [
        derive_seed(1, client, round_reference=RoundReference(*where), purpose="direction", index=step) for client, where, step in steps
    ]
    directions = [Directions(seed, distribution, layout_of(d)) for seed in seeds]
    table = np.array([some.materialise(group) for some in directions for group in (0, 1)], np.float64)
    correlation = table @ table.T / d
    off_diagonal = correlation - np.diag(np.diag(correlation))
    # The correlation of two independent directions has standard error 1 / sqrt(d).
    assert float(np.abs(off_diagonal).max()) < 5 / math.sqrt(d)


@pytest.mark.parametrize("distribution", ALL)
def test_directions_have_zero_mean_and_unit_covariance(distribution: DirectionDistribution) -> None:
    d, count = 7, 4096
    directions = Directions(SEED, distribution, layout_of(3, 4))
    table = np.array([directions.materialise(group) for group in range(count)], np.float64)
    covariance = table.T @ table / count
    # Entries of u u^T have variance at most 2 (a Gaussian's square), entries of u variance 1; five standard errors.
    assert np.abs(covariance - np.eye(d)).max() < 5 * math.sqrt(2 / count)
    assert np.abs(table.mean(axis=0)).max() < 5 / math.sqrt(count)


@pytest.mark.invariant(6)
def test_sphere_directions_have_radius_sqrt_d_and_gaussian_ones_do_not() -> None:
    d = 300
    sphere = np.array([Directions(SEED, DirectionDistribution.SPHERE, layout_of(d)).materialise(g) for g in range(20)], np.float64)
    gaussian = np.array([Directions(SEED, DirectionDistribution.GAUSSIAN, layout_of(d)).materialise(g) for g in range(20)], np.float64)
    np.testing.assert_allclose(np.linalg.norm(sphere, axis=1), math.sqrt(d), rtol=1e-6)
    assert np.linalg.norm(gaussian, axis=1).std() > 0.1


def test_sphere_directions_point_where_gaussian_ones_do() -> None:
    sphere = Directions(SEED, DirectionDistribution.SPHERE, layout_of(50)).materialise(3).astype(np.float64)
    gaussian = Directions(SEED, DirectionDistribution.GAUSSIAN, layout_of(50)).materialise(3).astype(np.float64)
    np.testing.assert_allclose(sphere / np.linalg.norm(sphere), gaussian / np.linalg.norm(gaussian), rtol=1e-5)


SEVERAL = (3, 70, BLOCK - 100, 200)
"""Tensors over two blocks, the second of which begins within one."""


@pytest.mark.parametrize("distribution", list(DirectionDistribution))
@pytest.mark.parametrize("magnitudes", [[0.5] * 4, [0.5, -1e-3, 0.0, 7.0]])
def test_directions_that_are_added_together_are_added_bit_for_bit_as_alone(
    distribution: DirectionDistribution, magnitudes: list[float]
) -> None:
    layout, sizes = layout_of(*SEVERAL), np.array(magnitudes)
    base = np.random.default_rng(1).standard_normal(layout.num_parameters).astype(np.float32)
    base[:3] = (-0.0, 0.0, 1e-45)
    directions = Directions(SEED, distribution, layout)
    together, alone = np.zeros((3, layout.num_parameters), np.float32), np.zeros((3, layout.num_parameters), np.float32)
    directions.add_each(4, sizes, base=base, targets=together)
    for index, row in enumerate(alone):
        Directions(SEED, distribution, layout).add(4 + index, sizes, base=base, target=row)
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("distribution", list(DirectionDistribution))
@pytest.mark.parametrize("sizes", [(126,), SEVERAL])
def test_directions_that_are_added_in_turn_are_added_bit_for_bit_one_after_the_other(
    distribution: DirectionDistribution, sizes: tuple[int, ...]
) -> None:
    layout, random = layout_of(*sizes), np.random.default_rng(2)
    theta = random.standard_normal(layout.num_parameters).astype(np.float32)
    theta[:2] = (-0.0, 0.0)
    magnitudes = np.outer(random.standard_normal(40) * np.logspace(-12, 6, 40), np.linspace(0.1, 2, len(sizes)))
    magnitudes[[0, 7, 39]] = 0.0
    twin, directions = theta.copy(), Directions(SEED, distribution, layout)
    for group, row in enumerate(magnitudes):
        if row.any():
            directions.add(group, row, base=twin, target=twin)
    directions.add_in_turn(magnitudes, theta)
    assert theta.tobytes() == twin.tobytes()


@pytest.mark.parametrize(("num_weights", "is_kept"), [(126, True), (BLOCK + 200, False)])
def test_a_step_along_small_directions_draws_nothing_that_its_passes_have_drawn(num_weights: int, is_kept: bool) -> None:
    layout, magnitudes = layout_of(num_weights), np.array([0.25])
    directions, others = (Directions(SEED, DirectionDistribution.RADEMACHER, layout) for _ in range(2))
    base, targets = np.zeros(num_weights, np.float32), np.zeros((64, num_weights), np.float32)
    directions.add_each(0, magnitudes, base=base, targets=targets)
    drawn: list[int] = []
    seek = directions._seek
    directions._seek = lambda *place: (drawn.append(place[1]), seek(*place))[1]  # type: ignore[func-returns-value,method-assign]
    moved, expected = base.copy(), base.copy()
    directions.add_in_turn(np.full((64, 1), 0.25), moved)
    others.add_in_turn(np.full((64, 1), 0.25), expected)
    assert moved.tobytes() == expected.tobytes()
    assert bool(drawn) is not is_kept


def test_rademacher_add_is_one_float32_addition_per_weight_bit_for_bit() -> None:
    sizes, magnitudes = (5, 300, 64, 1), np.array([1e-3, -2.7182818284590451, 1e-41, 0.0])
    layout = layout_of(*sizes)
    base = np.random.default_rng(0).standard_normal(layout.num_parameters).astype(np.float32)
    base[:4] = [0.0, -0.0, 1e-45, 3.4e38]
    target = np.full_like(base, np.nan)
    Directions(SEED, RADEMACHER, layout).add(4, magnitudes, base=base, target=target)
    per_weight = np.repeat(magnitudes.astype(np.float32), sizes)
    signs = np.array([rademacher_sign(SEED, 4, i) for i in range(layout.num_parameters)], np.float32)
    expected = np.array([b + s * m for b, s, m in zip(base, signs, per_weight, strict=True)], np.float32)
    assert np.array_equal(target.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("distribution", [DirectionDistribution.GAUSSIAN, DirectionDistribution.SPHERE])
def test_dense_add_scales_each_tensor_by_its_own_magnitude(distribution: DirectionDistribution) -> None:
    layout = layout_of(BLOCK - 1, 3, 40)
    magnitudes = np.array([0.5, -3.0, 1e-3])
    base = np.random.default_rng(1).standard_normal(layout.num_parameters).astype(np.float32)
    target = np.empty_like(base)
    directions = Directions(SEED, distribution, layout)
    directions.add(1, magnitudes, base=base, target=target)
    expected = base + np.repeat(magnitudes.astype(np.float32), (BLOCK - 1, 3, 40)) * directions.materialise(1)
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("distribution", ALL)
def test_adding_in_place_equals_adding_into_another_buffer(distribution: DirectionDistribution) -> None:
    layout = layout_of(BLOCK + 100, 7)
    base = np.random.default_rng(2).standard_normal(layout.num_parameters).astype(np.float32)
    apart, in_place = np.empty_like(base), base.copy()
    directions = Directions(SEED, distribution, layout)
    directions.add(3, np.array([0.1, 0.2]), base=base, target=apart)
    directions.add(3, np.array([0.1, 0.2]), base=in_place, target=in_place)
    assert np.array_equal(apart, in_place)
    assert not np.array_equal(apart, base)


@pytest.mark.invariant(8)
@pytest.mark.parametrize("distribution", ALL)
def test_perturbing_leaves_the_base_bit_identical(distribution: DirectionDistribution) -> None:
    layout = layout_of(40, 60)
    base = np.random.default_rng(3).standard_normal(100).astype(np.float32)
    before = base.tobytes()
    target, magnitudes = np.empty_like(base), np.array([0.3, 1e-3])
    kept = magnitudes.copy()
    base.setflags(write=False)
    directions = Directions(SEED, distribution, layout)
    for group in range(50):
        directions.add(group, magnitudes, base=base, target=target)
    assert base.tobytes() == before
    assert np.array_equal(magnitudes, kept)


@pytest.mark.parametrize("distribution", ALL)
def test_groups_may_be_asked_for_in_any_order(distribution: DirectionDistribution) -> None:
    forwards = Directions(SEED, distribution, layout_of(333))
    backwards = Directions(SEED, distribution, layout_of(333))
    first = [forwards.materialise(g) for g in range(6)]
    second = [backwards.materialise(g) for g in reversed(range(6))][::-1]
    assert np.array_equal(first, second)


@pytest.mark.parametrize("distribution", ALL)
def test_materialise_is_what_add_adds(distribution: DirectionDistribution) -> None:
    directions = Directions(SEED, distribution, layout_of(10, 20))
    base, target = np.zeros(30, np.float32), np.empty(30, np.float32)
    directions.add(2, np.array([4.0, 0.25]), base=base, target=target)
    assert np.array_equal(target, directions.materialise(2) * np.repeat(np.float32([4.0, 0.25]), (10, 20)))
