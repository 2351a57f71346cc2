"""Gamma and Dirichlet variates from raw counter-based words: numpy's own samplers may change with its version, these do not."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from heron_common.numerics.directions import PerturbationSeed

_WORDS_AT_ONCE = 64


def dirichlet(seed: PerturbationSeed, alpha: float, count: int) -> list[float]:
    """Return one draw from the symmetric Dirichlet distribution of `count` proportions; they add up to one."""
    logarithms = log_gamma_variates(seed, alpha, count)
    # Gamma variates of a small alpha are below the smallest float; only their ratios to the largest matter.
    largest = max(logarithms)
    weights = [math.exp(logarithm - largest) for logarithm in logarithms]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def log_gamma_variates(seed: PerturbationSeed, shape: float, count: int) -> list[float]:
    """Return logarithms of `count` independent Gamma(shape, 1) variates: Marsaglia and Tsang (2000), with their boost below shape 1."""
    uniforms = _uniforms(seed)
    return [_log_gamma(uniforms, shape) for _ in range(count)]


def _log_gamma(uniforms: Iterator[float], shape: float) -> float:
    if shape < 1.0:
        # Gamma(shape) = Gamma(shape + 1) * U^(1 / shape).
        return _log_gamma(uniforms, shape + 1.0) + math.log(next(uniforms)) / shape
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = _normal(uniforms)
        root = 1.0 + c * x
        if root <= 0.0:
            continue
        v = root * root * root
        if math.log(next(uniforms)) < 0.5 * x * x + d - d * v + d * math.log(v):
            return math.log(d * v)


def _normal(uniforms: Iterator[float]) -> float:
    """Marsaglia's polar method; the second variate of each pair is dropped, which keeps the sampler free of state."""
    while True:
        x, y = 2.0 * next(uniforms) - 1.0, 2.0 * next(uniforms) - 1.0
        square = x * x + y * y
        if 0.0 < square < 1.0:
            return x * math.sqrt(-2.0 * math.log(square) / square)


def _uniforms(seed: PerturbationSeed) -> Iterator[float]:
    """Yield the centres of 2^52 equal cells of (0, 1): never 0 and never 1, so logarithms are finite and not zero."""
    philox = np.random.Philox(key=np.array(seed, np.uint64))
    while True:
        for word in philox.random_raw(_WORDS_AT_ONCE):
            yield ((int(word) >> 12) + 0.5) * 2.0**-52
