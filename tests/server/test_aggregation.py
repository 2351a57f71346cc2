"""Averaging clients' weights, against a naive float64 twin."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heron_common.plan import Weighting
from heron_server.rounds.aggregation import aggregation_weights, weighted_mean

ROWS = st.lists(st.integers(0, 10_000), min_size=1, max_size=8)


@given(ROWS.filter(any))
def test_examples_weights_are_each_clients_share_of_the_rows(rows: list[int]) -> None:
    weights = aggregation_weights(rows, Weighting.EXAMPLES)
    np.testing.assert_allclose(weights, [float(Fraction(r, sum(rows))) for r in rows], rtol=1e-15)
    assert math.isclose(weights.sum(), 1.0, rel_tol=1e-14)


@given(ROWS)
def test_uniform_weights_do_not_look_at_rows(rows: list[int]) -> None:
    np.testing.assert_array_equal(aggregation_weights(rows, Weighting.UNIFORM), np.full(len(rows), 1 / len(rows)))


@pytest.mark.parametrize("weighting", list(Weighting))
def test_clients_without_rows_count_alike(weighting: Weighting) -> None:
    np.testing.assert_array_equal(aggregation_weights([0, 0], weighting), [0.5, 0.5])


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_the_mean_is_the_naive_float64_sum_rounded_once(clients: int, size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    arrays = [(generator.standard_normal(size) * 10.0 ** generator.integers(-6, 6)).astype(np.float32) for _ in range(clients)]
    weights = aggregation_weights(list(generator.integers(1, 100, clients)), Weighting.EXAMPLES)
    naive = np.array([math.fsum(float(w) * float(a[i]) for a, w in zip(arrays, weights, strict=True)) for i in range(size)])
    bound = sum(w * np.abs(a.astype(np.float64)) for a, w in zip(arrays, weights, strict=True))
    got = weighted_mean(arrays, weights)
    assert got.dtype == np.float32
    assert np.all(np.abs(got - naive) <= np.spacing(np.abs(naive).astype(np.float32)) / 2 + clients * 2.0**-52 * bound)


@settings(deadline=None)
@given(ROWS.filter(lambda rows: sum(map(bool, rows)) > 1), st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_change_whose_weight_is_whose(rows: list[int], random: object) -> None:
    arrays = [np.array([float(i), 1.0], np.float32) for i in range(len(rows))]
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    weights = aggregation_weights(rows, Weighting.EXAMPLES)
    shuffled = aggregation_weights([rows[i] for i in order], Weighting.EXAMPLES)
    np.testing.assert_allclose(shuffled, weights[order], rtol=1e-15)
    np.testing.assert_allclose(weighted_mean([arrays[i] for i in order], shuffled), weighted_mean(arrays, weights), rtol=1e-6)


def test_equal_weights_of_equal_arrays_give_them_back_bit_for_bit() -> None:
    array = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    for clients in (1, 2, 3, 7):
        got = weighted_mean([array] * clients, aggregation_weights([5] * clients, Weighting.EXAMPLES))
        np.testing.assert_array_equal(got, array)


def test_the_inputs_are_left_alone() -> None:
    arrays = [np.ones(3, np.float32), np.zeros(3, np.float32)]
    weighted_mean(arrays, aggregation_weights([1, 1], Weighting.UNIFORM))
    np.testing.assert_array_equal(arrays[0], np.ones(3))
    np.testing.assert_array_equal(arrays[1], np.zeros(3))
