"""What a backward pass costs where the gradient does not go through the whole front, by counting."""

from __future__ import annotations

import math

from heron_common.algorithm.algorithm import Algorithm, LocalLosses
from heron_common.algorithm.plan import BACKWARD_EQUIVALENTS, Estimator
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.split_model import SplitModel
from heron_server.programs.compile import compile_function
from heron_server.programs.cost import FlopCount

_SAMPLES = 2
"""As many as `client_cost` takes."""

_STEPS = 1024
"""Equivalents are rounded up to so many parts of one, a power of two: sums of them over steps, samples and clients are exact, in whatever order."""


def backward_equivalents(algorithm: Algorithm, model: SplitModel) -> float:
    """Return how many forward passes a backward pass counts as: two, or by FLOPs where its gradients are cut off or a part of the front is without any."""
    partial = (
        algorithm.local_losses is not LocalLosses.END or algorithm.train_weights != "all" or algorithm.plan.estimator is Estimator.HYBRID
    )
    if not (partial and algorithm.plan.takes_gradients and algorithm.plan.needs_head):
        return BACKWARD_EQUIVALENTS
    # Texts of the greatest length, as all else that is counted of them.
    forward, both = (_flops(model, kind) for kind in (ProgramKind.LOSS, ProgramKind.GRADIENT))
    return math.ceil(_STEPS * (both - forward) / max(1, forward)) / _STEPS


def _flops(model: SplitModel, kind: ProgramKind) -> int:
    function, counter = compile_function(model, kind, micro_batch=_SAMPLES), FlopCount()
    with counter:
        function.module(*function.arguments)
    return counter.total
