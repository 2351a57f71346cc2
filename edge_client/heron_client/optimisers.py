"""From guarded derivatives to a step on the flat buffer; an optimiser's state lives for one round."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from heron_common.directions import Directions
from heron_common.plan import ClientOptimiser, Plan
from heron_common.tensors import Float32Array, Float64Array
from heron_common.zeroth_order import GuardedDerivatives, scalar_adaptive_coefficients, sgd_coefficients


class Optimiser(Protocol):
    """Moves theta along the directions of one step, in group order."""

    def step(self, theta: Float32Array, guarded: GuardedDerivatives, directions: Directions, scales: Float64Array) -> None:
        """Update `theta` [num_parameters] in place."""
        ...


class CoefficientOptimiser:
    """Optimisers whose step is sum_g a_g v_g: one addition per weight and group, so a list of a_g replays it exactly."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def step(self, theta: Float32Array, guarded: GuardedDerivatives, directions: Directions, scales: Float64Array) -> None:
        for group, coefficient in enumerate(self._coefficients(guarded, theta.size)):
            directions.add(group, coefficient * scales, theta, theta)

    def _coefficients(self, guarded: GuardedDerivatives, num_parameters: int) -> Float64Array:
        rate = self._plan.learning_rate
        if self._plan.optimiser is ClientOptimiser.SGD:
            return sgd_coefficients(guarded.values, rate)
        return scalar_adaptive_coefficients(guarded.values, guarded.second_moment.value, rate, num_parameters)


class AdamOptimiser:
    """Adam (arXiv 1412.6980) on the dense gradient estimate; costs three buffers of the model's size."""

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, plan: Plan, num_parameters: int) -> None:
        self._rate = plan.learning_rate
        self._estimate = np.zeros(num_parameters, np.float32)
        self._first = np.zeros(num_parameters, np.float32)
        self._second = np.zeros(num_parameters, np.float32)
        self._steps = 0

    def step(self, theta: Float32Array, guarded: GuardedDerivatives, directions: Directions, scales: Float64Array) -> None:
        self._steps += 1
        self._estimate[:] = 0
        for group, derivative in enumerate(guarded.values / guarded.values.size):
            directions.add(group, derivative * scales, self._estimate, self._estimate)
        self._first += np.float32(1 - self.BETA1) * (self._estimate - self._first)
        self._second += np.float32(1 - self.BETA2) * (np.square(self._estimate) - self._second)
        corrected = np.sqrt(self._second / np.float32(1 - self.BETA2**self._steps))
        theta -= np.float32(self._rate / (1 - self.BETA1**self._steps)) * self._first / (corrected + np.float32(self.EPSILON))


def make_optimiser(plan: Plan, num_parameters: int) -> Optimiser:
    """Return a fresh optimiser for one round."""
    if plan.optimiser is ClientOptimiser.ADAM:
        return AdamOptimiser(plan, num_parameters)
    return CoefficientOptimiser(plan)
