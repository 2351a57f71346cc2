"""Zeroth-order estimation and steps as pure functions: scalars in, scalars out; directions come from `directions`.

Notation: theta weights, d their number, G groups, v_g = S u_g with E[u u^T] = I and S = diag(s), mu the smoothing radius,
c_g the directional derivative of group g. The gradient estimate is ghat = (1/G) sum_g c_g v_g, with E[ghat] = S^2 grad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from heron_common.tensors import Float32Array, Float64Array

SECOND_MOMENT_DECAY = 0.98
"""A memory of about fifty steps: long against one step's noise, short against a run."""

MAX_STEP_SCALES = 1.0
"""A step never moves a weight by more than its tensor's scale, whatever the losses say."""


class FiniteDifference(StrEnum):
    """FORWARD: (l(theta + mu v) - l(theta)) / mu. CENTRAL: (l(theta + mu v) - l(theta - mu v)) / (2 mu)."""

    FORWARD = "forward"
    CENTRAL = "central"


@dataclass(frozen=True)
class GuardedDerivatives:
    """Directional derivatives that may touch weights: finite and clipped.

    Attributes:
        values: [G], float64.
        num_clipped: how many were larger than the limit.
        num_non_finite: how many were NaN or infinite; they count as 0.
        second_moment: the running mean of c^2 after this step.

    """

    values: Float64Array
    num_clipped: int
    num_non_finite: int
    second_moment: float


def directional_derivatives(
    plus: Float32Array, minus: Float32Array, direction_groups: int, smoothing_radius: float, difference: FiniteDifference
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


def guard(derivatives: Float64Array, second_moment: float, clip_factor: float) -> GuardedDerivatives:
    """Zero what is not finite, clip the rest at clip_factor * sqrt(second_moment), and update the running mean of c^2.

    A second moment of 0 means that none is known yet: the first step sets it from its own derivatives, clipped at `clip_factor` times their median size.
    """
    finite = np.isfinite(derivatives)
    num_non_finite = int(derivatives.size - finite.sum())
    values = np.where(finite, derivatives, 0.0)
    reference = math.sqrt(second_moment) if second_moment > 0 else float(np.median(np.abs(values[finite]))) if finite.any() else 0.0
    limit = clip_factor * reference if reference > 0 else math.inf
    clipped = np.abs(values) > limit
    values = np.clip(values, -limit, limit)
    step_moment = float(np.mean(np.square(values[finite]))) if finite.any() else 0.0
    if second_moment > 0 and finite.any():
        step_moment = SECOND_MOMENT_DECAY * second_moment + (1 - SECOND_MOMENT_DECAY) * step_moment
    elif not finite.any():
        step_moment = second_moment
    return GuardedDerivatives(values, int(clipped.sum()), num_non_finite, step_moment)


def sgd_coefficients(derivatives: Float64Array, learning_rate: float) -> Float64Array:
    """Return a_g = -eta c_g / G, so that theta += sum_g a_g v_g is theta -= eta ghat (arXiv 2601.09076, local update)."""
    return bounded(-learning_rate * derivatives / derivatives.size)


def scalar_adaptive_coefficients(
    derivatives: Float64Array, second_moment: float, learning_rate: float, num_parameters: int
) -> Float64Array:
    """Return a_g = -eta * G/(G+d) * c_g / (G sqrt(m)), m the running mean of c^2.

    For directions with E[u u^T] = I the mean of c^2 is |S grad|^2 plus sampling noise, so dividing by sqrt(m) makes the step independent of the loss's scale;
    it is what Adam's second moment becomes when |u_i| = 1 for every weight. G/(G+d) is the share of |ghat|^2 that is signal.
    """
    if second_moment <= 0:
        return np.zeros_like(derivatives)
    groups = derivatives.size
    return bounded(-learning_rate * (groups / (groups + num_parameters)) * derivatives / (groups * math.sqrt(second_moment)))


def bounded(coefficients: Float64Array) -> Float64Array:
    """Scale the coefficients down, if need be, so that no weight can move by more than MAX_STEP_SCALES of its scale in one step."""
    reach = float(np.abs(coefficients).sum())
    return coefficients if reach <= MAX_STEP_SCALES else coefficients * (MAX_STEP_SCALES / reach)


def tensor_scales(tensors: list[Float32Array], floor: float) -> Float64Array:
    """Return s_t = max(rms(W_t), floor) per tensor, in float64; the server sends them once a round."""
    return np.array([max(_rms([t]), floor) for t in tensors], np.float64)


def global_scales(tensors: list[Float32Array], floor: float) -> Float64Array:
    """Return s = max(rms of all weights, floor) for every tensor: relative to the model's size, but alike in all directions."""
    return np.full(len(tensors), max(_rms(tensors), floor), np.float64)


def merge_second_moments(moments: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """Return the weighted mean of the clients' running means of c^2; 0 entries (none known) do not count."""
    known = moments > 0
    return float(np.average(moments[known], weights=weights[known])) if known.any() and float(weights[known].sum()) > 0 else 0.0


def _rms(tensors: list[Float32Array]) -> float:
    squares = sum(float(np.sum(np.square(t, dtype=np.float64))) for t in tensors)
    return math.sqrt(squares / max(1, sum(t.size for t in tensors)))
