"""Averaging clients' weights: pure functions over flat arrays."""

from __future__ import annotations

import numpy as np

from heron_common.plan import Weighting
from heron_common.tensors import Float32Array, Float64Array


def aggregation_weights(rows: list[int], weighting: Weighting) -> Float64Array:
    """Return the clients' weights, summing to 1: by the rows that the server counted, or alike.

    `rows` is what the server received, never what a client declares; if it received none, all count alike.
    """
    counts = np.array(rows, np.float64)
    if weighting is Weighting.UNIFORM or counts.sum() == 0:
        counts = np.ones(len(rows), np.float64)
    weights: Float64Array = counts / counts.sum()
    return weights


def weighted_mean(arrays: list[Float32Array], weights: Float64Array) -> Float32Array:
    """Return sum_i w_i theta_i (FedAvg, arXiv 1602.05629), accumulated in float64 in the given order and rounded once."""
    total = np.zeros(arrays[0].shape, np.float64)
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * array.astype(np.float64)
    return total.astype(np.float32)
