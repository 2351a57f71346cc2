"""Combining clients' weights into one set, by mean or by rules that bound an attacker: pure functions over flat arrays.

Arrays are flat float32 weights [d], one per client, finite (anything else was refused on arrival). Sums are accumulated in float64 and rounded once.
The robust rules walk d in blocks: N arrays are in memory already, an N x d copy in float64 would be twice that again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.algorithm.algorithm import Weighting
from heron_common.numerics.tensors import Float32Array, Float64Array

TRIM_FRACTION = 0.2
"""Share dropped at each end by the trimmed mean: with the paper's usual 0.1 five clients would drop floor(0.5) = 0, with this one at each end."""

BYZANTINE_SHARE = 0.2
"""Share of clients that multi-Krum expects to lie, rounded up: one of five, as the trimmed mean."""

OUT_OF_PROPORTION = 1e8
"""An update may lie so many times as far from the round's start as the start is large: in a mean with more no bit of the others' float32 is left."""

_SMALLEST = 1e-2
"""Root mean square of weights below which they count as this large: the floor of direction scales."""

_BLOCK_VALUES = 1 << 18
"""Values of all clients together held at a time: 2 MiB in float64, within a core's cache."""

_ROUNDING = 1e-9
"""A share times a number of clients is a whole number if it is one in decimals: 0.29 * 100 is 28.999999999999996 in binary."""


def aggregation_weights(rows: list[int], weighting: Weighting) -> Float64Array:
    """Return the clients' weights, summing to 1: by the rows that the server counted, or alike.

    `rows` is what the server received, never what a client declares; if it received none, all count alike.
    """
    counts = np.array(rows, np.float64)
    if weighting is Weighting.UNIFORM or counts.sum() == 0:
        counts = np.ones(len(rows), np.float64)
    weights: Float64Array = counts / counts.sum()
    return weights


def aggregate(rule: AggregationRule, arrays: list[Float32Array], *, weights: Float64Array, reference: Float32Array) -> Float32Array:
    """Return the clients' weights combined by `rule` with this module's constants.

    A cohort may shrink while a round runs, so no rule refuses a small one. Multi-Krum needs 2f + 2 < N, hence five clients for f = 1; with fewer it
    tolerates nobody, and the coordinate median is returned instead. The trimmed mean drops nobody below five clients and is then the plain mean.

    Args:
        rule: which rule.
        arrays: N arrays, [d] float32 each.
        weights: [N], float64, summing to 1; read by the two means that are weighted.
        reference: [d], float32, the weights that the round started from; read by the norm-clipped mean.

    Raises:
        ValueError: the number of weights is not that of the arrays, or an array has another shape than `reference`.

    """
    if len(weights) != len(arrays):
        raise ValueError(f"expected one weight for each of {len(arrays)} arrays, got {len(weights)}")
    for array in arrays:
        if array.shape != reference.shape:
            raise ValueError(f"expected weights of shape {reference.shape}, got {array.shape}")
    match rule:
        case AggregationRule.MEAN:
            return weighted_mean(arrays, weights)
        case AggregationRule.MEDIAN:
            return coordinate_median(arrays)
        case AggregationRule.TRIMMED_MEAN:
            return trimmed_mean(arrays, TRIM_FRACTION)
        case AggregationRule.NORM_CLIPPED_MEAN:
            return norm_clipped_mean(arrays, weights, reference)
        case AggregationRule.MULTI_KRUM:
            num_byzantine = expected_byzantine(len(arrays))
            if num_byzantine == 0:
                return coordinate_median(arrays)
            return multi_krum(arrays, num_byzantine, len(arrays) - num_byzantine)


def weighted_mean(arrays: list[Float32Array], weights: Float64Array) -> Float32Array:
    """Return sum_i w_i theta_i (FedAvg, arXiv 1602.05629), accumulated in float64 in the given order and rounded once."""
    total = np.zeros(arrays[0].shape, np.float64)
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * array.astype(np.float64)
    return total.astype(np.float32)


def in_proportion(arrays: list[Float32Array], reference: Float32Array) -> list[int]:
    """Return the places of the clients whose weights are in proportion to those that the round started from."""
    start = math.sqrt(float(np.sum(np.square(reference, dtype=np.float64))))
    limit = OUT_OF_PROPORTION * max(start, _SMALLEST * math.sqrt(reference.size))
    return [place for place, norm in enumerate(_delta_norms(arrays, reference)) if norm <= limit]


def coordinate_median(arrays: list[Float32Array]) -> Float32Array:
    """Return the median of every coordinate, of an even number the mean of the middle two (Yin et al. 2018, arXiv 1803.01498).

    Unweighted: a weighted median would let the client with most rows decide. The same bits for any order of the clients.
    """
    return _mean_of_sorted(arrays, (len(arrays) - 1) // 2)


def trimmed_mean(arrays: list[Float32Array], trim_fraction: float) -> Float32Array:
    """Return every coordinate's mean without its floor(trim_fraction N) smallest and largest (Yin et al. 2018, arXiv 1803.01498).

    At least one is kept, of an even number two. Unweighted; the same bits for any order of the clients.

    Raises:
        ValueError: `trim_fraction` is not in [0, 1/2).

    """
    if not 0 <= trim_fraction < 0.5:
        raise ValueError(f"a share between 0 and 1/2 can be trimmed at each end, not {trim_fraction}")
    return _mean_of_sorted(arrays, min(math.floor(trim_fraction * len(arrays) + _ROUNDING), (len(arrays) - 1) // 2))


def norm_clipped_mean(arrays: list[Float32Array], weights: Float64Array, reference: Float32Array) -> Float32Array:
    """Return r + sum_i w_i min(1, c / |delta_i|) delta_i, where delta_i = theta_i - r and c is the median of |delta_i|.

    Norm bounding (Sun et al. 2019, arXiv 1911.07963) with a bound that need not be tuned. Of an even number of norms c is the lower of the middle two: half of
    the clients then cannot raise it, and of two clients neither can. A liar still pulls with its weight, but not further than an ordinary client.
    """
    norms = _delta_norms(arrays, reference)
    bound = np.sort(norms)[(len(norms) - 1) // 2]
    factors = weights * (bound / np.maximum(norms, bound) if bound > 0 else norms == 0)
    result = np.empty_like(reference)
    for span in _spans(reference.size, 1):
        start = reference[span].astype(np.float64)
        total = start.copy()
        for array, factor in zip(arrays, factors, strict=True):
            total += factor * (array[span] - start)
        result[span] = total
    return result


def multi_krum(arrays: list[Float32Array], num_byzantine: int, num_selected: int) -> Float32Array:
    """Return the mean of the `num_selected` arrays with the smallest Krum scores (Blanchard et al. 2017, arXiv 1703.02757).

    score_i is the sum of the squared distances from theta_i to the N - f - 2 others nearest to it, f = num_byzantine. Unweighted; of equal scores the earlier
    client's counts as smaller. Otherwise the order of the clients changes no bit: scores are sums of sorted distances and the mean is taken in their order.

    Raises:
        ValueError: 2f + 2 < N does not hold, or `num_selected` is not in [1, N].

    """
    if num_byzantine < 0 or 2 * num_byzantine + 2 >= len(arrays):
        raise ValueError(f"multi-Krum needs 0 <= 2f + 2 < N, but f is {num_byzantine} and N is {len(arrays)}")
    if not 1 <= num_selected <= len(arrays):
        raise ValueError(f"between 1 and {len(arrays)} arrays can be selected, not {num_selected}")
    distances = _squared_distances(arrays)
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, : len(arrays) - num_byzantine - 2].sum(axis=1)
    chosen = np.argsort(scores, kind="stable")[:num_selected]
    return weighted_mean([arrays[i] for i in chosen], np.full(num_selected, 1 / num_selected))


def expected_byzantine(num_clients: int) -> int:
    """Return f for multi-Krum: BYZANTINE_SHARE of the clients rounded up, at most floor((N - 3) / 2); 0 below five clients."""
    return max(0, min(math.ceil(BYZANTINE_SHARE * num_clients - _ROUNDING), (num_clients - 3) // 2))


def _mean_of_sorted(arrays: list[Float32Array], dropped: int) -> Float32Array:
    result = np.empty(arrays[0].shape, np.float32)
    for span in _spans(result.size, len(arrays)):
        # One client per column: short contiguous rows sort faster than columns do.
        stacked = np.stack([array[span] for array in arrays], axis=1)
        stacked.sort(axis=1)
        result[span] = stacked[:, dropped : len(arrays) - dropped].mean(axis=1, dtype=np.float64)
    return result


def _delta_norms(arrays: list[Float32Array], reference: Float32Array) -> Float64Array:
    squares = np.zeros(len(arrays), np.float64)
    for span in _spans(reference.size, 1):
        start = reference[span].astype(np.float64)
        for index, array in enumerate(arrays):
            squares[index] += np.square(array[span] - start).sum()
    return np.sqrt(squares)


def _squared_distances(arrays: list[Float32Array]) -> Float64Array:
    # Differences, not |a|^2 + |b|^2 - 2ab: clients differ by far less than their weights' norm, and that form would cancel.
    distances = np.zeros((len(arrays), len(arrays)), np.float64)
    for span in _spans(arrays[0].size, len(arrays)):
        stacked = np.stack([array[span] for array in arrays]).astype(np.float64)
        for i in range(len(arrays) - 1):
            delta = stacked[i + 1 :] - stacked[i]
            distances[i, i + 1 :] += np.square(delta, out=delta).sum(axis=1)
    distances += distances.T.copy()
    return distances


def _spans(size: int, clients: int) -> Iterator[slice]:
    width = max(1, _BLOCK_VALUES // clients)
    return (slice(start, start + width) for start in range(0, size, width))
