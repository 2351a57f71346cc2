"""A first-order step that leaves nothing infinite behind, whatever came in.

Nothing has to be undone, so that no second copy of a back is needed: everything that a step would make of weights and moments is bounded by the length of
its gradient, and that is looked at before. A gradient whose squares add up in float32 is shorter than 2e19: Adam's second moment, a mean of squares, stays
finite, its steps are a few rates long whatever the gradient, and those of SGD are bounded by REACH. What moves before a gradient is known is a module's
buffers (running statistics); they are small, kept, and put back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from heron_common.numerics.tensors import Float32Array
from heron_server.training.proportion import Proportion, StepReason, StepRefusal

REACH = 1e3
"""A step of SGD may be so many times as long as the weights are, or as this if they are shorter than 1: a longer one leaves nothing of them."""

FIRST_REACH = 1.0
"""Before anything is known of a run, a gradient moves weights under SGD at most so many times their length (or 1), with all that momentum makes of it later:
a longer one is shortened. Uploads of any size, tried: a loss 11,000 times the first one without this, at most 1.3 times a run's without them with it."""


@dataclass(frozen=True)
class StepOutcome:
    """What one step found before it stepped.

    Attributes:
        losses: [B], the back's loss of each sample; empty where activations alone were reason enough to take no step.
        head: mean loss of the head, None if the server does not train it on labels.
        refusal: why nothing moved; None if the step was taken.
        cut_gradient: [B, *cut], the gradient of each sample's own loss at the cut, if it was asked for.
        gradient_norm: length of the back's gradient before it was shortened; None if nothing moved.
        shortened: whether a gradient was.

    """

    losses: Float32Array
    head: float | None
    _: KW_ONLY
    refusal: StepRefusal | None = None
    cut_gradient: Float32Array | None = None
    gradient_norm: float | None = None
    shortened: bool = False

    @property
    def skipped(self) -> bool:
        """Whether nothing moved."""
        return self.refusal is not None

    @property
    def server(self) -> float:
        """Mean loss of the back."""
        return float(np.mean(self.losses, dtype=np.float64))


@dataclass(frozen=True)
class SteppedPart:
    """A module's optimiser and its mean loss on what came; `figure` is its name in `Proportion`."""

    figure: str
    _: KW_ONLY
    optimiser: torch.optim.Optimizer
    loss: torch.Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained ones."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]


class KeptBuffers:
    """Copies of the buffers that a forward pass may move."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        # Masks are of bools: large, and never moved.
        found = (buffer for module in modules for buffer in module.buffers() if buffer.dtype is not torch.bool)
        self._kept = [(buffer, buffer.detach().clone()) for buffer in found]

    def put_back(self) -> None:
        """Undo what moved."""
        for buffer, kept in self._kept:
            buffer.copy_(kept)

    @property
    def became_infinite(self) -> bool:
        """Whether one that was finite no longer is."""
        # All at once first: a question to a GPU for each would cost more than the step.
        if math.isfinite(length([buffer for buffer, _ in self._kept if buffer.is_floating_point()])):
            return False
        return any(not is_finite(buffer) and is_finite(kept) for buffer, kept in self._kept)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def backward(parts: Sequence[SteppedPart]) -> dict[str, float]:
    """Compute the gradients of all parts; return their lengths."""
    lengths = {}
    for part in parts:
        for parameter in part.parameters:
            parameter.grad = None
        part.loss.backward()  # type: ignore[no-untyped-call]
        lengths[part.figure] = length([p.grad for p in part.parameters if p.grad is not None])
    return lengths


def judge_step(parts: Sequence[SteppedPart], lengths: dict[str, float], *, buffers: KeptBuffers, known: Proportion) -> StepRefusal | None:
    """Return why a step may not be taken with the gradients that are there; None if it may."""
    for part in parts:
        loss = float(part.loss.detach())
        if not math.isfinite(loss):
            return StepRefusal(StepReason.NON_FINITE, "loss", measured=loss, limit=math.inf)
        refusal = known.judge(part.figure, lengths[part.figure]) or _judge_reach(part, lengths[part.figure])
        if refusal is not None:
            return refusal
    if buffers.became_infinite:
        return StepRefusal(StepReason.NON_FINITE, "buffers", measured=math.inf, limit=math.inf)
    return None


def longest_gradients(parts: Sequence[SteppedPart], known: Proportion) -> dict[str, float]:
    """Return the length to which each part's gradient is shortened: by what is known of the run, else by how far it would move the weights."""
    return {part.figure: known.longest(part.figure) if known.knows(part.figure) else _longest_first(part) for part in parts}


def take_step(parts: Sequence[SteppedPart], lengths: dict[str, float], limits: dict[str, float]) -> bool:
    """Step all parts, with gradients that are shortened to their limits; return whether one was."""
    shortened = False
    for part in parts:
        limit = limits.get(part.figure, math.inf)
        if lengths[part.figure] > limit:
            clip_grads_with_norm_(part.parameters, limit, torch.tensor(lengths[part.figure]))
            shortened = True
        part.optimiser.step()
    return shortened


def length(tensors: Sequence[torch.Tensor]) -> float:
    """Return the Euclidean length of all together in their own precision: infinite where their squares overflow."""
    return float(get_total_norm(tensors)) if tensors else 0.0


def _longest_first(part: SteppedPart) -> float:
    """Adam's steps are as long as its rate whatever the gradient, and what its moments remember is forgotten once more is known."""
    if not isinstance(part.optimiser, torch.optim.SGD):
        return math.inf
    options = part.optimiser.param_groups[0]
    weights = length([parameter.detach() for parameter in part.parameters])
    return FIRST_REACH * max(weights, 1.0) * (1 - float(options["momentum"])) / float(options["lr"])


def _judge_reach(part: SteppedPart, gradient: float) -> StepRefusal | None:
    """SGD moves weights by rate * (momentum * buffer + gradient + decay * weights), as far as its gradient goes."""
    if not isinstance(part.optimiser, torch.optim.SGD):
        return None
    options = part.optimiser.param_groups[0]
    weights = length([parameter.detach() for parameter in part.parameters])
    moments = [state["momentum_buffer"] for state in part.optimiser.state.values() if state.get("momentum_buffer") is not None]
    reach = options["lr"] * (options["momentum"] * length(moments) + gradient + options["weight_decay"] * weights)
    limit = REACH * max(weights, 1.0)
    return None if reach <= limit else StepRefusal(StepReason.OUT_OF_PROPORTION, part.figure, measured=reach, limit=limit)
