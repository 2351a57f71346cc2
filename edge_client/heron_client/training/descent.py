"""The two kinds of step on the flat buffer: along an exact gradient, and along directions whose derivatives were measured. Each judges before it moves."""

from __future__ import annotations

import numpy as np

from heron_client.training.optimisers import make_gradient_optimiser, make_zeroth_order_optimiser
from heron_client.training.round_meter import RoundMeter
from heron_common.algorithm.plan import ClientOptimiser, Plan
from heron_common.numerics.directions import Directions
from heron_common.numerics.tensors import Float32Array, Float64Array
from heron_common.numerics.zeroth_order import GuardedDerivatives, directional_derivatives, guard

_NORMALISED = {ClientOptimiser.ADAM, ClientOptimiser.ADAMW}

EXPLODED = 1e12
"""A gradient's largest entry, a clipped derivative or a batch's mean loss beyond this is no step to take: the round has diverged."""

LONGEST_STEP = 1e3
"""No optimiser may move a weight by more at a time: normalisation would hide weights beyond it from the loss, which stays finite while they grow."""


class ExactDescent:
    """Moves weights against the mean gradient of a batch.

    Attributes:
        gradient: [num_parameters], what programs add the gradients of a batch's samples to.

    """

    def __init__(self, plan: Plan, weights: Float32Array) -> None:
        """Take `weights`, a view of theta, to be moved in place."""
        self._plan, self._weights = plan, weights
        self.gradient: Float32Array = np.zeros(weights.size, np.float32)
        self._optimiser = make_gradient_optimiser(plan, weights.size)

    def cleared(self) -> Float32Array:
        """Return the gradient's buffer, zeros."""
        self.gradient[:] = 0
        return self.gradient

    def judge(self, meter: RoundMeter) -> None:
        """Turn the sum over the batch into its mean, and note a gradient that is no step to take."""
        self.gradient *= np.float32(1.0 / self._plan.batch_size)
        largest = float(np.max(np.abs(self.gradient), initial=0.0))
        # Adam divides by the gradient's size, the others step in proportion to it.
        reach = self._plan.learning_rate * (1.0 if self._plan.optimiser in _NORMALISED else largest)
        if not (largest <= EXPLODED and reach <= LONGEST_STEP):
            meter.diverged = True

    def move(self) -> None:
        """Take the step."""
        self._optimiser.step(self._weights, self.gradient)


class DifferenceDescent:
    """Moves weights along the directions of a step by their guarded derivatives.

    Attributes:
        weights: [num_parameters], the view of theta that is perturbed and moved.
        coefficients: of the steps so far, zeros where none was taken.

    """

    def __init__(self, plan: Plan, weights: Float32Array, scales: Float64Array) -> None:
        """Take `weights`, a view of theta, to be moved in place, and the directions' scale for each of its tensors."""
        self._plan, self.weights, self._scales = plan, weights, scales
        self._optimiser = make_zeroth_order_optimiser(plan, weights.size)
        self.coefficients: list[Float64Array] = []

    def judge(self, pairs: list[tuple[Float32Array, Float32Array]], meter: RoundMeter) -> GuardedDerivatives:
        """Return the guarded derivatives of a step's pairs of losses, and note those that are no step to take."""
        plan = self._plan
        found = [
            directional_derivatives(
                a, b, direction_groups=plan.direction_groups, smoothing_radius=plan.smoothing_radius, difference=plan.difference
            )
            for a, b in pairs
        ]
        guarded = guard(np.concatenate(found), meter.second_moment, quantile=meter.quantile, clip_factor=plan.clip_factor)
        if guarded.num_non_finite == guarded.values.size or float(np.max(np.abs(guarded.values))) > EXPLODED:
            meter.diverged = True
        meter.add_differences(guarded)
        return guarded

    def move(self, guarded: GuardedDerivatives, directions: Directions) -> None:
        """Take the step."""
        self.coefficients.append(self._optimiser.step(self.weights, guarded, directions=directions, scales=self._scales))

    def pass_over(self) -> None:
        """Note a step that was not taken."""
        self.coefficients.append(np.zeros(self._plan.direction_groups * self._plan.num_directions, np.float64))
