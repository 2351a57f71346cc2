"""Combining clients' weights: every rule against a naive float64 twin, in any order of clients, and with one attacker among them."""

from __future__ import annotations

import itertools
import math
import statistics
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.algorithm.algorithm import Weighting
from heron_common.numerics.tensors import Float32Array
from heron_server.training import aggregation
from heron_server.training.aggregation import (
    TRIM_FRACTION,
    aggregate,
    aggregation_weights,
    coordinate_median,
    expected_byzantine,
    in_proportion,
    multi_krum,
    norm_clipped_mean,
    trimmed_mean,
    weighted_mean,
)

ROWS = st.lists(st.integers(0, 10_000), min_size=1, max_size=8)
RULES = list(AggregationRule)
ROBUST = [rule for rule in RULES if rule is not AggregationRule.MEAN]
UNWEIGHTED = [AggregationRule.MEDIAN, AggregationRule.TRIMMED_MEAN, AggregationRule.MULTI_KRUM]


def clients(count: int, size: int, seed: int = 0) -> list[Float32Array]:
    generator = np.random.default_rng(seed)
    return list(generator.standard_normal((count, size)).astype(np.float32))


def uniform(count: int) -> np.ndarray:
    return aggregation_weights([1] * count, Weighting.UNIFORM)


def naive_norm_clipped(arrays: list[Float32Array], weights: np.ndarray, reference: Float32Array) -> list[float]:
    deltas = [[float(x) - float(r) for x, r in zip(a, reference, strict=True)] for a in arrays]
    norms = [math.sqrt(math.fsum(x * x for x in d)) for d in deltas]
    bound = statistics.median_low(norms)
    clipped = [[x * min(1.0, bound / n) if n else 0.0 for x in d] for d, n in zip(deltas, norms, strict=True)]
    return [float(r) + math.fsum(float(w) * c[i] for w, c in zip(weights, clipped, strict=True)) for i, r in enumerate(reference)]


def naive_krum_order(arrays: list[Float32Array], num_byzantine: int) -> list[int]:
    def score(i: int) -> float:
        others = (j for j in range(len(arrays)) if j != i)
        distances = sorted(math.fsum((float(x) - float(y)) ** 2 for x, y in zip(arrays[i], arrays[j], strict=True)) for j in others)
        return math.fsum(distances[: len(arrays) - num_byzantine - 2])

    return sorted(range(len(arrays)), key=score)


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


@pytest.mark.invariant(11)
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


@pytest.mark.invariant(11)
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


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_median_is_the_textbook_median_of_every_coordinate(count: int, size: int, seed: int) -> None:
    arrays = clients(count, size, seed)
    naive = [statistics.median(float(a[i]) for a in arrays) for i in range(size)]
    np.testing.assert_array_equal(coordinate_median(arrays), np.array(naive, np.float32), strict=True)


def test_the_median_of_two_huge_values_does_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    assert coordinate_median([np.array([largest], np.float32)] * 4) == largest


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.49]), st.integers(0, 2**32 - 1))
def test_the_trimmed_mean_is_the_naive_one(count: int, size: int, fraction: float, seed: int) -> None:
    arrays = clients(count, size, seed)
    dropped = math.floor(Fraction(str(fraction)) * count)
    naive = [statistics.fmean(sorted(float(a[i]) for a in arrays)[dropped : count - dropped]) for i in range(size)]
    np.testing.assert_allclose(trimmed_mean(arrays, fraction), naive, rtol=2**-23, atol=1e-15)


def test_a_share_that_is_whole_in_decimals_is_trimmed_whole() -> None:
    arrays = [np.array([2.0**i], np.float32) for i in range(100)]
    assert math.floor(0.29 * 100) == 28
    np.testing.assert_allclose(trimmed_mean(arrays, 0.29), [(2.0**71 - 2.0**29) / 42], rtol=1e-6)


def test_trimming_nothing_is_the_mean_and_trimming_most_the_median() -> None:
    for count in range(1, 8):
        arrays = clients(count, 50)
        np.testing.assert_allclose(trimmed_mean(arrays, 0.0), weighted_mean(arrays, uniform(count)), rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(trimmed_mean(arrays, 0.4999), coordinate_median(arrays))


@pytest.mark.parametrize("fraction", [-0.1, 0.5, math.nan])
def test_a_share_that_leaves_nothing_is_a_programming_error(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1/2"):
        trimmed_mean(clients(3, 2), fraction)


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_norm_clipped_mean_is_the_naive_one(count: int, size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    reference = generator.standard_normal(size).astype(np.float32)
    arrays = [(reference + x * 10.0 ** generator.integers(-2, 3)).astype(np.float32) for x in clients(count, size, seed + 1)]
    weights = aggregation_weights(list(generator.integers(1, 100, count)), Weighting.EXAMPLES)
    np.testing.assert_allclose(
        norm_clipped_mean(arrays, weights, reference), naive_norm_clipped(arrays, weights, reference), rtol=2**-22, atol=1e-12
    )


def test_deltas_of_one_length_are_not_clipped() -> None:
    reference = np.zeros(3, np.float32)
    arrays = [np.array(x, np.float32) for x in ([2, 0, 0], [0, -2, 0], [0, 0, 2])]
    weights = np.array([0.5, 0.25, 0.25])
    np.testing.assert_array_equal(norm_clipped_mean(arrays, weights, reference), [1, -0.5, 0.5])


def test_clients_that_mostly_stand_still_keep_the_reference() -> None:
    reference = np.full(4, 7.0, np.float32)
    arrays = [reference.copy(), reference.copy(), reference + 1]
    np.testing.assert_array_equal(norm_clipped_mean(arrays, uniform(3), reference), reference)


@settings(deadline=None)
@given(st.integers(3, 9), st.integers(2, 20), st.integers(0, 2**32 - 1), st.data())
def test_multi_krum_averages_those_that_naive_scores_put_first(count: int, size: int, seed: int, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (count - 3) // 2))
    num_selected = data.draw(st.integers(1, count))
    arrays = clients(count, size, seed)
    chosen = naive_krum_order(arrays, num_byzantine)[:num_selected]
    naive = [statistics.fmean(float(arrays[j][i]) for j in chosen) for i in range(size)]
    # Mutual nearest neighbours have equal scores where one neighbour counts; the naive twin breaks the tie the same way.
    np.testing.assert_allclose(multi_krum(arrays, num_byzantine, num_selected), naive, rtol=2**-22, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "num_byzantine", "num_selected", "words"),
    [(4, 1, 1, "2f"), (2, 0, 1, "2f"), (5, -1, 1, "2f"), (5, 1, 0, "selected"), (5, 1, 6, "selected")],
)
def test_multi_krum_outside_its_conditions_is_a_programming_error(count: int, num_byzantine: int, num_selected: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        multi_krum(clients(count, 2), num_byzantine, num_selected)


def test_the_expected_liars_are_a_fifth_rounded_up_as_far_as_the_rule_permits() -> None:
    assert [expected_byzantine(n) for n in (1, 2, 3, 4, 5, 6, 7, 10, 11, 15, 35)] == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 7]
    assert all(f == 0 or 2 * f + 2 < n for n in range(1, 200) for f in [expected_byzantine(n)])
    assert all(expected_byzantine(n) == -(-n // 5) for n in range(7, 200))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_the_dispatcher_calls_each_rule_with_the_modules_constants(count: int) -> None:
    arrays, reference, weights = (
        clients(count, 40),
        np.ones(40, np.float32),
        aggregation_weights([*range(1, count + 1)], Weighting.EXAMPLES),
    )
    f = expected_byzantine(count)
    expected = {
        AggregationRule.MEAN: weighted_mean(arrays, weights),
        AggregationRule.MEDIAN: coordinate_median(arrays),
        AggregationRule.TRIMMED_MEAN: trimmed_mean(arrays, TRIM_FRACTION),
        AggregationRule.NORM_CLIPPED_MEAN: norm_clipped_mean(arrays, weights, reference),
        AggregationRule.MULTI_KRUM: multi_krum(arrays, f, count - f) if count >= 5 else coordinate_median(arrays),
    }
    assert set(expected) == set(RULES)
    for rule in RULES:
        np.testing.assert_array_equal(aggregate(rule, arrays, weights=weights, reference=reference), expected[rule], strict=True)


@pytest.mark.parametrize("rule", RULES)
def test_another_shape_or_number_of_weights_is_a_programming_error(rule: AggregationRule) -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\), got \(1,\)"):
        aggregate(rule, [np.ones(4, np.float32), np.ones(1, np.float32)], weights=uniform(2), reference=np.ones(4, np.float32))
    with pytest.raises(ValueError, match="one weight for each of 2 arrays, got 3"):
        aggregate(rule, clients(2, 4), weights=uniform(3), reference=np.ones(4, np.float32))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rule", RULES)
def test_clients_that_agree_get_their_weights_back(rule: AggregationRule, count: int) -> None:
    array = clients(1, 300)[0]
    got = aggregate(rule, [array] * count, weights=uniform(count), reference=np.zeros(300, np.float32))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("rule", UNWEIGHTED)
def test_an_unweighted_rule_gives_the_same_bits_for_any_order_of_clients(rule: AggregationRule) -> None:
    arrays = clients(6, 500)
    expected = aggregate(rule, arrays, weights=uniform(6), reference=arrays[0])
    for order in itertools.islice(itertools.permutations(range(6)), 0, None, 37):
        got = aggregate(rule, [arrays[i] for i in order], weights=uniform(6), reference=arrays[0])
        assert got.tobytes() == expected.tobytes()


def test_the_order_of_clients_moves_the_norm_clipped_mean_by_rounding_only() -> None:
    arrays, reference = clients(5, 500), np.ones(500, np.float32)
    weights = aggregation_weights([5, 1, 2, 7, 3], Weighting.EXAMPLES)
    expected = norm_clipped_mean(arrays, weights, reference)
    for order in itertools.permutations(range(5)):
        got = norm_clipped_mean([arrays[i] for i in order], weights[list(order)], reference)
        np.testing.assert_allclose(got, expected, rtol=2**-22, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_the_blocks_do_not_show(rule: AggregationRule, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, reference = clients(5, 301), np.ones(301, np.float32)
    whole = aggregate(rule, arrays, weights=uniform(5), reference=reference)
    for values in (1, 35, 1505):
        monkeypatch.setattr(aggregation, "_BLOCK_VALUES", values)
        np.testing.assert_allclose(aggregate(rule, arrays, weights=uniform(5), reference=reference), whole, rtol=2**-22, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_no_copy_of_all_clients_is_made_and_the_inputs_are_left_alone(rule: AggregationRule) -> None:
    arrays, reference = clients(20, 1 << 17), np.zeros(1 << 17, np.float32)
    for array in (*arrays, reference):
        array.flags.writeable = False
    tracemalloc.start()
    aggregate(rule, arrays, weights=uniform(20), reference=reference)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 9e6 < 20 * (1 << 17) * 4  # All clients together are 10 MB in float32, 21 MB in float64.


def aggregate_with_attacker(rule: AggregationRule, count: int) -> tuple[Float32Array, list[Float32Array], Float32Array]:
    """Return the result, the honest clients' arrays around a common step from the reference, and the reference."""
    reference = clients(1, 200, seed=1)[0]
    honest = [(reference + np.float32(0.1) + np.float32(0.01) * x).astype(np.float32) for x in clients(count - 1, 200)]
    attacker = np.full(200, -1e30, np.float32)
    return aggregate(rule, [*honest[:1], attacker, *honest[1:]], weights=uniform(count), reference=reference), honest, reference


@pytest.mark.parametrize("count", [5, 10])
def test_one_attacker_ruins_the_mean(count: int) -> None:
    got, _, _ = aggregate_with_attacker(AggregationRule.MEAN, count)
    assert np.all(got < -9e28)


@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize("rule", UNWEIGHTED)
def test_one_attacker_keeps_the_other_rules_within_the_honest_range(rule: AggregationRule, count: int) -> None:
    got, honest, _ = aggregate_with_attacker(rule, count)
    assert np.all(got >= np.min(honest, axis=0))
    assert np.all(got <= np.max(honest, axis=0))


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_one_attacker_pulls_the_norm_clipped_mean_no_further_than_an_honest_client(count: int) -> None:
    got, honest, reference = aggregate_with_attacker(AggregationRule.NORM_CLIPPED_MEAN, count)
    bound = max(np.linalg.norm(a - reference) for a in honest)
    assert np.linalg.norm(got - np.mean([*honest, reference], axis=0)) <= 2.01 * bound / count


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize(("rule", "holds"), [(r, r is not AggregationRule.TRIMMED_MEAN) for r in ROBUST])
def test_below_five_clients_only_the_trimmed_mean_protects_nobody(rule: AggregationRule, holds: bool, count: int) -> None:
    got, honest, _ = aggregate_with_attacker(rule, count)
    assert bool(np.abs(got - honest[0]).max() < 1) is holds


def test_weights_are_in_proportion_to_where_their_round_began() -> None:
    start = np.full(4, 2.0, np.float32)
    arrays = [np.full(4, value, np.float32) for value in (2.0, -1.5e8, 1.9e8, 2.1e8, 3e38)]
    assert in_proportion(arrays, start) == [0, 1, 2]
    assert in_proportion([np.full(4, 0.9e6, np.float32), np.full(4, 1.1e6, np.float32)], np.zeros(4, np.float32)) == [0]
