"""Whether what was captured of a user's model is that model: outputs, gradients of every weight and state, in evaluation and in training mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from heron_server.models.copies import copied, generators_kept
from heron_server.models.split_model import SplitModel, predict
from heron_server.models.user.reasons import reason_of

TOLERANCE = 1e-4
"""Of the largest value: the same operations in the same order differ by rounding at most."""

_WHY = "does it draw random numbers, keep values from one batch to the next, or change a tensor in place that is used again?"

Call = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""(module, samples) -> outputs."""

_MODES = ("evaluation", "training", "evaluation")
"""Passes in this order: what one in training mode leaves behind is seen in the last."""


@dataclass(frozen=True)
class Pass:
    """What one forward and backward pass gave.

    Attributes:
        outputs: what the module returned.
        gradients: of each trained weight, by all the names that it has; None where the outputs do not depend on it.
        buffers: the state behind it, by name.

    """

    outputs: torch.Tensor
    gradients: dict[tuple[str, ...], torch.Tensor | None]
    buffers: dict[str, torch.Tensor]


class InTurn(nn.Module):
    """Samples and the mask of tokens, None for numbers -> outputs of two parts in a row."""

    def __init__(self, front: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.last = last

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        outputs: torch.Tensor = predict(self.last, self.front(x), mask)
        return outputs


def capture_difference(theirs: nn.Module, ours: nn.Module, *, call: Call, x: torch.Tensor) -> str:
    """Return what differs between a model and its capture on the same samples with the same seeds; empty if nothing does.

    The text goes on from the model's name. Copies of both are run.
    """
    theirs, ours = copied(theirs), copied(ours)
    for mode in _MODES:
        try:
            expected = one_pass(theirs, call, x=x, training=mode == "training")
        except Exception as exc:
            return f"was run in {mode} mode, but {reason_of(exc)}"
        try:
            found = one_pass(ours, call, x=x, training=mode == "training")
        except Exception as exc:
            return f"was captured and run in {mode} mode, but {reason_of(exc)}"
        differing = _differing(expected, found)
        if differing:
            return f"does not compute what it computes as a whole: in {mode} mode {differing} ({_WHY})"
    return ""


def cut_difference(whole: nn.Module, model: SplitModel, *, call: Call, x: torch.Tensor) -> str:
    """Return what differs between a model and both its sides in a row, or what weights in front clients could not train; as `capture_difference`."""
    expected = one_pass(copied(whole), call, x=x, training=False)
    found = sides_pass(model, model.back, x)
    differing = _differing(expected, found)
    if differing:
        return f"does not compute what it computes as a whole: {differing} ({_WHY})"
    idle = [names[0] for names, gradient in found.gradients.items() if gradient is None and names[0] in model.front.state_dict()]
    if idle:
        return (
            f"has the weight {idle[0]} in front, which gets no gradient (torch.no_grad, detach, rounding, or unused), but clients would train it: "
            "freeze it with requires_grad_(False), or use it"
        )
    wild = [names[0] for names, gradient in found.gradients.items() if gradient is not None and not bool(torch.isfinite(gradient).all())]
    return (
        f"gives NaN or infinite gradients, for {wild[0]} among others: mend it, or give --eval-data with samples that it takes"
        if wild
        else ""
    )


def sides_pass(model: SplitModel, last: nn.Module, x: torch.Tensor) -> Pass:
    """Run copies of the front and of a back or head in evaluation mode; weights have the names that they have there."""

    def call(module: nn.Module, samples: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = module(samples, model.mask(samples))
        return outputs

    found = one_pass(copied(InTurn(model.front, last)), call, x=x, training=False)
    gradients = {tuple(name.partition(".")[2] for name in names): gradient for names, gradient in found.gradients.items()}
    return Pass(found.outputs, gradients, {name.partition(".")[2]: value for name, value in found.buffers.items()})


def one_pass(module: nn.Module, call: Call, *, x: torch.Tensor, training: bool) -> Pass:
    """Run samples forward and the gradient of a weighted sum of outputs back; generators begin at the same place each time."""
    module.train(training)
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    with generators_kept(seed=0), torch.enable_grad():
        outputs = call(module, x.clone())
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
        gradients: tuple[torch.Tensor | None, ...] = (None,) * len(names)
        if outputs.requires_grad and names:
            gradients = torch.autograd.grad((outputs * weights).sum(), list(names), allow_unused=True)
    buffers = {name: value.detach().clone() for name, value in module.named_buffers(remove_duplicate=False)}
    return Pass(outputs.detach(), dict(zip(map(tuple, names.values()), gradients, strict=True)), buffers)


def _differing(expected: Pass, found: Pass) -> str:
    if not _alike(found.outputs, expected.outputs):
        return "outputs are others"
    theirs = {name: gradient for names, gradient in found.gradients.items() for name in names}
    largest = max((_largest(gradient) for gradient in expected.gradients.values() if gradient is not None), default=0.0)
    for names, gradient in expected.gradients.items():
        other = next((theirs[name] for name in names if name in theirs), None)
        if (gradient is None) is not (other is None):
            return f"{names[0]} gets {'a' if gradient is None else 'no'} gradient"
        if gradient is not None and other is not None and not _alike(other, gradient, largest):
            return f"the gradient of {names[0]} is another"
    moved = [name for name, value in expected.buffers.items() if name in found.buffers and not _alike(found.buffers[name], value)]
    return f"{moved[0]} moves otherwise" if moved else ""


def _alike(found: torch.Tensor, expected: torch.Tensor, beside: float = 0.0) -> bool:
    """Return whether two tensors are equal but for rounding; not a number is like itself, and so is an infinity.

    `beside` is the largest value among those that were computed with them: of a tensor that is zero in theory only rounding is left.
    """
    if found.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    atol = max(TOLERANCE * _largest(expected), 1e-2 * TOLERANCE * beside)
    return torch.allclose(found.float(), expected.float(), rtol=TOLERANCE, atol=atol, equal_nan=True)


def _largest(value: torch.Tensor) -> float:
    finite = value[torch.isfinite(value)]
    return float(finite.abs().max()) if finite.numel() else 0.0
