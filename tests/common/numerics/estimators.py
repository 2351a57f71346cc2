"""Losses with known gradients, tables of directions, and means compared by their Monte-Carlo standard error."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from heron_common.numerics.directions import DirectionDistribution, Directions, PerturbationSeed
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import DType, TensorSpec

DIMENSION = 6
STANDARD_ERRORS = 5.0
"""A mean further off than this is a defect: seeds are fixed, and chance would exceed it once in 1.7 million."""


def layout_of(*sizes: int) -> FlatLayout:
    """Return a layout of one-dimensional tensors."""
    return FlatLayout(tuple(TensorSpec(f"t{i}", DType.FLOAT32, (size,)) for i, size in enumerate(sizes)))


@dataclass(frozen=True)
class Quadratic:
    """f(x) = x'Hx/2 + b'x for many points at once."""

    hessian: np.ndarray
    linear: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return 0.5 * np.einsum("ni,ij,nj->n", points, self.hessian, points) + points @ self.linear

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return self.hessian @ theta + self.linear


def quadratic(seed: int = 0, curvature: float = 1.0) -> Quadratic:
    """Return an indefinite quadratic with a full Hessian."""
    generator = np.random.default_rng(seed)
    square = generator.standard_normal((DIMENSION, DIMENSION))
    return Quadratic(curvature * (square + square.T) / 2, generator.standard_normal(DIMENSION))


@functools.cache
def direction_table(distribution: DirectionDistribution, count: int, key: int = 1) -> np.ndarray:
    """Return `count` directions of HERON as float64 rows, [count, DIMENSION]; kept, so nobody may write to it."""
    directions = Directions(PerturbationSeed(key, 0), distribution, layout_of(2, DIMENSION - 2))
    table = np.array([directions.materialise(group) for group in range(count)], np.float64)
    table.setflags(write=False)
    return table


def assert_mean(samples: np.ndarray, expected: np.ndarray | float, rounding: float = 1e-5) -> None:
    """Compare the mean over the first axis with its expectation, within STANDARD_ERRORS of the mean plus float32 rounding."""
    error = np.abs(samples.mean(axis=0) - expected)
    bound = STANDARD_ERRORS * standard_error(samples) + rounding * np.maximum(1.0, np.abs(expected))
    assert np.all(error <= bound), f"off by {error}, allowed {bound}, expected {expected}"


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over the first axis."""
    return samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
