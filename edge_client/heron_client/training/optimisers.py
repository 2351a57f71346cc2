"""From guarded derivatives or an exact gradient to a step on the flat buffer; an optimiser's state lives for one round."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from heron_common.algorithm.plan import ClientOptimiser, Plan
from heron_common.numerics.directions import Directions
from heron_common.numerics.layout import BLOCK
from heron_common.numerics.tensors import Float32Array, Float64Array
from heron_common.numerics.update_log import apply_coefficients
from heron_common.numerics.zeroth_order import GuardedDerivatives, relative_coefficients, sgd_coefficients


class GradientOptimiser(Protocol):
    """Moves theta against a gradient or an estimate of one."""

    def step(self, theta: Float32Array, gradient: Float32Array) -> None:
        """Update `theta` [num_parameters] in place; `gradient` may be used as scratch."""
        ...


class Sgd:
    """theta -= eta g."""

    def __init__(self, learning_rate: float) -> None:
        self._rate = np.float32(learning_rate)

    def step(self, theta: Float32Array, gradient: Float32Array) -> None:
        gradient *= self._rate
        theta -= gradient


class Momentum:
    """v = m v + g; theta -= eta v (as torch.optim.SGD with momentum)."""

    def __init__(self, learning_rate: float, momentum: float, num_parameters: int) -> None:
        self._rate, self._momentum = np.float32(learning_rate), np.float32(momentum)
        self._velocity = np.zeros(num_parameters, np.float32)

    def step(self, theta: Float32Array, gradient: Float32Array) -> None:
        self._velocity *= self._momentum
        self._velocity += gradient
        np.multiply(self._velocity, self._rate, out=gradient)
        theta -= gradient


class Adam:
    """Adam (arXiv 1412.6980); with a weight decay theta also shrinks by eta * decay each step (AdamW, arXiv 1711.05101). Costs two buffers."""

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, learning_rate: float, weight_decay: float, num_parameters: int) -> None:
        self._rate = learning_rate
        self._keep = np.float32(1.0 - learning_rate * weight_decay)
        self._first = np.zeros(num_parameters, np.float32)
        self._second = np.zeros(num_parameters, np.float32)
        self._steps = 0

    def step(self, theta: Float32Array, gradient: Float32Array) -> None:
        self._steps += 1
        rate = np.float32(self._rate / (1 - self.BETA1**self._steps))
        root = np.float32(1 / math.sqrt(1 - self.BETA2**self._steps))
        for span in _blocks(theta.size):
            g, first, second = gradient[span], self._first[span], self._second[span]
            first += np.float32(1 - self.BETA1) * (g - first)
            second += np.float32(1 - self.BETA2) * (np.square(g) - second)
            if self._keep != 1:
                theta[span] *= self._keep
            theta[span] -= rate * first / (np.sqrt(second) * root + np.float32(self.EPSILON))


class ZerothOrderOptimiser(Protocol):
    """Moves theta along the directions of one step."""

    def step(self, theta: Float32Array, guarded: GuardedDerivatives, *, directions: Directions, scales: Float64Array) -> Float64Array:
        """Update `theta` [num_parameters] in place; return the coefficients of the directions, if the step was a sum of them, else an empty array."""
        ...


class CoefficientOptimiser:
    """Optimisers whose step is sum_g a_g v_g: one addition per weight and direction, so a list of a_g replays it exactly."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def step(self, theta: Float32Array, guarded: GuardedDerivatives, *, directions: Directions, scales: Float64Array) -> Float64Array:
        coefficients = self._coefficients(guarded)
        apply_coefficients(theta, coefficients, directions=directions, scales=scales)
        return coefficients

    def _coefficients(self, guarded: GuardedDerivatives) -> Float64Array:
        if self._plan.steps_relatively:
            return relative_coefficients(guarded.values, guarded.second_moment.value, self._plan.relative_step)
        return sgd_coefficients(guarded.values, self._plan.learning_rate)


class EstimateOptimiser:
    """A gradient optimiser on the dense estimate (1/n) sum_g c_g v_g; costs a buffer of the model's size beside the optimiser's own."""

    def __init__(self, inner: GradientOptimiser, num_parameters: int) -> None:
        self._inner = inner
        self._estimate = np.zeros(num_parameters, np.float32)

    def step(self, theta: Float32Array, guarded: GuardedDerivatives, *, directions: Directions, scales: Float64Array) -> Float64Array:
        self._estimate[:] = 0
        apply_coefficients(self._estimate, guarded.values / guarded.values.size, directions=directions, scales=scales)
        self._inner.step(theta, self._estimate)
        return np.empty(0, np.float64)


def make_gradient_optimiser(plan: Plan, num_parameters: int) -> GradientOptimiser:
    """Return a fresh optimiser for one round of exact gradients."""
    if plan.optimiser is ClientOptimiser.MOMENTUM:
        return Momentum(plan.learning_rate, plan.momentum, num_parameters)
    if plan.optimiser in (ClientOptimiser.ADAM, ClientOptimiser.ADAMW):
        decay = plan.weight_decay if plan.optimiser is ClientOptimiser.ADAMW else 0.0
        return Adam(plan.learning_rate, decay, num_parameters)
    return Sgd(plan.learning_rate)


def make_zeroth_order_optimiser(plan: Plan, num_parameters: int) -> ZerothOrderOptimiser:
    """Return a fresh optimiser for one round of finite differences over a trained buffer of `num_parameters` weights."""
    if plan.steps_relatively or plan.optimiser is ClientOptimiser.SGD:
        return CoefficientOptimiser(plan)
    return EstimateOptimiser(make_gradient_optimiser(plan, num_parameters), num_parameters)


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))
