"""Zeroth-order estimation and steps as pure functions: scalars in, scalars out; directions come from `directions`.

Notation: theta weights, d their number, G groups with P directions each, v_g = S u_g with E[u u^T] = I and S = diag(s), mu the smoothing radius,
c_g the directional derivative of direction g. The gradient estimate is ghat = (1/(G P)) sum_g c_g v_g, with E[ghat] = S^2 grad.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum

import numpy as np

from heron_common.numerics.tensors import Float32Array, Float64Array

SECOND_MOMENT_DECAY = 0.98
"""A memory of about fifty steps: long against one step's noise, short against a run."""

ESTABLISHED_COUNT = 16
"""Derivatives after which their mean square is a fair measure; before that nothing is called an outlier by it."""

CLIP_QUANTILE = 0.95
"""Sizes of derivatives below this share are ordinary; clipping is measured by where it lies."""

QUANTILE_RATE = 0.1
"""How far one observation moves the logarithm of the running quantile: it forgets over a few hundred observations, and an outlier hardly moves it."""

_RISE, _FALL = math.exp(QUANTILE_RATE * CLIP_QUANTILE), math.exp(QUANTILE_RATE * (CLIP_QUANTILE - 1.0))

QUANTILE_OVER_MEDIAN = 2.9
"""CLIP_QUANTILE over the median of |c| for a normal c: 1.96 / 0.674."""

MAX_STEP_SCALES = 1.0
"""The sum of |a_g| over a step: with Rademacher directions no weight moves by more than its tensor's scale, whatever the losses say."""


class FiniteDifference(StrEnum):
    """FORWARD: (l(theta + mu v) - l(theta)) / mu. CENTRAL: (l(theta + mu v) - l(theta - mu v)) / (2 mu)."""

    FORWARD = "forward"
    CENTRAL = "central"


@dataclass(frozen=True)
class SecondMoment:
    """Running mean of squared directional derivatives: a plain mean at first, exponentially forgetting later.

    Attributes:
        value: the mean of c^2; 0 if none is known.
        steps: how many steps it is made of.
        count: how many derivatives it is made of.

    """

    value: float = 0.0
    steps: int = 0
    count: int = 0

    @classmethod
    def received(cls, value: float) -> SecondMoment:
        """Take up the mean that earlier rounds arrived at; 0 means that there is none, and what is not finite is none."""
        known = value > 0 and math.isfinite(value)
        return cls(value, round(1 / (1 - SECOND_MOMENT_DECAY)), ESTABLISHED_COUNT) if known else cls()

    def updated(self, derivatives: Float64Array) -> SecondMoment:
        """Return the mean after one more step: m + (mean(c^2) - m) / min(steps, memory)."""
        if derivatives.size == 0:
            return self
        rate = max(1 - SECOND_MOMENT_DECAY, 1 / (self.steps + 1))
        value = self.value + rate * (float(np.mean(np.square(derivatives))) - self.value)
        return SecondMoment(value, self.steps + 1, self.count + derivatives.size)


@dataclass(frozen=True)
class RunningQuantile:
    """Running CLIP_QUANTILE of sizes |c|, tracked on the logarithm so that it follows any scale (Robbins and Monro 1951).

    Attributes:
        value: the quantile; 0 if none is known.
        count: how many sizes it is made of.

    """

    value: float = 0.0
    count: int = 0

    @classmethod
    def received(cls, value: float) -> RunningQuantile:
        """Take up the quantile that earlier rounds arrived at; 0 means that there is none, and what is not finite is none."""
        return cls(value, ESTABLISHED_COUNT) if value > 0 and math.isfinite(value) else cls()

    def updated(self, sizes: Float64Array) -> RunningQuantile:
        """Return the quantile after more sizes: log q rises by rate * tau on each larger size and falls by rate * (1 - tau) on each other."""
        if sizes.size == 0:
            return self
        value = self.value or QUANTILE_OVER_MEDIAN * float(np.median(sizes))
        for size in sizes.tolist():
            value *= _RISE if size > value else _FALL
        return RunningQuantile(value, self.count + sizes.size)


@dataclass(frozen=True)
class GuardedDerivatives:
    """Directional derivatives that may touch weights: finite and clipped.

    Attributes:
        values: [directions], float64.
        num_clipped: how many were larger than the limit.
        num_non_finite: how many were NaN or infinite; they count as 0.
        second_moment: the running mean of c^2, this step included.
        quantile: the running quantile of |c|, this step included.

    """

    values: Float64Array
    num_clipped: int
    _: KW_ONLY
    num_non_finite: int
    second_moment: SecondMoment
    quantile: RunningQuantile


def directional_derivatives(
    plus: Float32Array, minus: Float32Array, *, direction_groups: int, smoothing_radius: float, difference: FiniteDifference
) -> Float64Array:
    """Return c_g = mean over group g of (plus_i - minus_i) / (mu or 2 mu), [direction_groups], float64.

    The mean over the group's per-sample losses is taken in float64, so that the micro-batch changes nothing but the forwards' own rounding.

    Args:
        plus: [batch_size], losses at theta + mu v.
        minus: [batch_size], losses at theta (forward) or theta - mu v (central).
        direction_groups: G; divides the batch size.
        smoothing_radius: mu.
        difference: which of the two formulas.

    """
    reach = smoothing_radius if difference is FiniteDifference.FORWARD else 2.0 * smoothing_radius
    with np.errstate(invalid="ignore", over="ignore"):
        delta = (plus.astype(np.float64) - minus.astype(np.float64)).reshape(direction_groups, -1)
        means: Float64Array = delta.mean(axis=1) / reach
    return means


def guard(derivatives: Float64Array, second_moment: SecondMoment, *, quantile: RunningQuantile, clip_factor: float) -> GuardedDerivatives:
    """Zero what is not finite, clip the rest at clip_factor times the running quantile of sizes, and update both running figures.

    While the quantile rests on fewer than ESTABLISHED_COUNT sizes, what the median within this step makes one expect is taken instead.
    """
    finite = np.isfinite(derivatives)
    values = np.where(finite, derivatives, 0.0)
    sizes = np.abs(values[finite])
    reference = quantile.value if quantile.count >= ESTABLISHED_COUNT else _expected_quantile(sizes)
    limit = clip_factor * reference if reference > 0 else math.inf
    num_clipped = int((np.abs(values) > limit).sum())
    values = np.clip(values, -limit, limit)
    return GuardedDerivatives(
        values,
        num_clipped,
        num_non_finite=int((~finite).sum()),
        second_moment=second_moment.updated(values[finite]),
        quantile=quantile.updated(sizes),
    )


def _expected_quantile(sizes: Float64Array) -> float:
    return QUANTILE_OVER_MEDIAN * float(np.median(sizes)) if sizes.size else 0.0


def sgd_coefficients(derivatives: Float64Array, learning_rate: float) -> Float64Array:
    """Return a_g = -eta c_g / G, so that theta += sum_g a_g v_g is theta -= eta ghat (arXiv 2601.09076, local update)."""
    return bounded(-learning_rate * derivatives / derivatives.size)


def relative_coefficients(derivatives: Float64Array, second_moment: float, relative_step: float) -> Float64Array:
    """Return a_g = -rho c_g / (sqrt(G) sqrt(m)), m the running mean of c^2: a step of a length relative to the weights.

    Directions of a step are nearly orthogonal, so its length is sqrt(sum a_g^2 s^2 d), about rho s sqrt(d): rho times the norm of the weights that s is
    the root mean square of, whatever d, G and the loss's scale are. Dividing by sqrt(m) is what Adam does, where |u_i| = 1 for every weight.
    """
    if not 0 < second_moment < math.inf:
        return np.zeros_like(derivatives)
    return bounded(-relative_step * derivatives / math.sqrt(derivatives.size * second_moment))


def bounded(coefficients: Float64Array) -> Float64Array:
    """Scale the coefficients down, if need be, so that sum |a_g| is at most MAX_STEP_SCALES."""
    reach = float(np.abs(coefficients).sum())
    return coefficients if reach <= MAX_STEP_SCALES else coefficients * (MAX_STEP_SCALES / reach)


def tensor_scales(tensors: list[Float32Array], floor: float) -> Float64Array:
    """Return s_t = max(rms(W_t), floor) per tensor, in float64; the server sends them once a round."""
    return np.array([max(_rms([t]), floor) for t in tensors], np.float64)


def global_scales(tensors: list[Float32Array], floor: float) -> Float64Array:
    """Return s = max(rms of all weights, floor) for every tensor: relative to the model's size, but alike in all directions."""
    return np.full(len(tensors), max(_rms(tensors), floor), np.float64)


def _rms(tensors: list[Float32Array]) -> float:
    squares = sum(float(np.sum(np.square(t, dtype=np.float64))) for t in tensors)
    return math.sqrt(squares / max(1, sum(t.size for t in tensors)))
