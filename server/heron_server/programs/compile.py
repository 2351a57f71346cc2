"""A split model's side of the client as pure functions of weights and data, ready for export."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from heron_common.assignment import ProgramKind
from heron_common.errors import ProgramError
from heron_server.models.split_model import SplitModel


class LossProgram(nn.Module):
    """theta_c, theta_a, x, y -> z, per-sample local loss."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self._model = (model,)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, client_model: list[torch.Tensor], auxiliary_head: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model = self._model[0]
        z = _call(model.front, client_model, x)
        return z, model.sample_losses(_call(model.auxiliary_head, auxiliary_head, z), y)


class FrontProgram(nn.Module):
    """theta_c, x -> z."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self._model = (model,)

    def forward(self, x: torch.Tensor, client_model: list[torch.Tensor]) -> torch.Tensor:
        return _call(self._model[0].front, client_model, x)


class GradientProgram(nn.Module):
    """theta_c, theta_a, x, y -> z, per-sample local loss, gradients of the losses' sum."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self._losses = LossProgram(model)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, client_model: list[torch.Tensor], auxiliary_head: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            front, head = _leaves(client_model), _leaves(auxiliary_head)
            z, losses = self._losses(x, y, front, head)
            return z.detach(), losses.detach(), *_gradients(losses.sum(), [*front, *head])


class SurrogateProgram(nn.Module):
    """theta_c, x, lambda -> z, per-sample <lambda, z>."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self._model = (model,)

    def forward(self, x: torch.Tensor, cut_gradient: torch.Tensor, client_model: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        z = _call(self._model[0].front, client_model, x)
        return z, (z * cut_gradient).flatten(1).sum(1)


class PullbackProgram(nn.Module):
    """theta_c, x, lambda -> gradients of the sum of <lambda, z>."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self._model = (model,)

    def forward(self, x: torch.Tensor, cut_gradient: torch.Tensor, client_model: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            front = _leaves(client_model)
            return _gradients(_call(self._model[0].front, front, x), front, cut_gradient)


@dataclass(frozen=True)
class CompiledFunction:
    """A function to export: module, example arguments in order, and the names of its inputs and outputs.

    The module computes gradients with autograd; it is what the exported program is compared with.
    """

    kind: ProgramKind
    module: nn.Module
    arguments: tuple[object, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    @property
    def differentiates(self) -> bool:
        """Whether some outputs are gradients."""
        return self.kind in (ProgramKind.GRADIENT, ProgramKind.PULLBACK)


def compile_function(model: SplitModel, kind: ProgramKind, micro_batch: int) -> CompiledFunction:
    """Return the function of one program for runs of `micro_batch` samples.

    Inputs are named `x`, `y` or `cut_gradient`, `client_model.<i>`, `auxiliary_head.<i>` in flat-buffer order; outputs `activations`,
    `losses` or `inner_products`, then `gradients.<input>`.

    Raises:
        ProgramError: the model normalises across samples, or is in a mode that draws random numbers.

    """
    _refuse_dependent_samples(model)
    x = torch.zeros(micro_batch, *model.input_shape)
    y = torch.zeros(micro_batch, dtype=torch.int64)
    cut_gradient = torch.zeros(micro_batch, *model.to_spec().cut.shape)
    front = [p.detach().cpu() for p in model.front.parameters()]
    head = [p.detach().cpu() for p in model.auxiliary_head.parameters()]
    fronts = tuple(f"client_model.{i}" for i in range(len(front)))
    heads = tuple(f"auxiliary_head.{i}" for i in range(len(head)))
    gradients = tuple(f"gradients.{name}" for name in (*fronts, *heads))
    match kind:
        case ProgramKind.FRONT:
            return CompiledFunction(kind, FrontProgram(model), (x, front), ("x", *fronts), ("activations",))
        case ProgramKind.LOSS | ProgramKind.GRADIENT:
            module: nn.Module = LossProgram(model) if kind is ProgramKind.LOSS else GradientProgram(model)
            outputs = ("activations", "losses", *(gradients if kind is ProgramKind.GRADIENT else ()))
            return CompiledFunction(kind, module, (x, y, front, head), ("x", "y", *fronts, *heads), outputs)
        case ProgramKind.SURROGATE | ProgramKind.PULLBACK:
            module = SurrogateProgram(model) if kind is ProgramKind.SURROGATE else PullbackProgram(model)
            outputs = ("activations", "inner_products") if kind is ProgramKind.SURROGATE else gradients[: len(front)]
            return CompiledFunction(kind, module, (x, cut_gradient, front), ("x", "cut_gradient", *fronts), outputs)


def _refuse_dependent_samples(model: SplitModel) -> None:
    """Refuse a model in which a sample's output depends on the rest of its batch: micro-batches and groups would silently change it.

    Raises:
        ProgramError: it does.

    """
    sentence = (
        "{} makes a sample's output depend on the rest of its batch or on chance: use GroupNorm, or call eval() to freeze its statistics"
    )
    parts = (model.front, model.auxiliary_head)
    for module in (m for part in parts for m in part.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ProgramError(sentence.format(f"batch normalisation ({type(module).__name__} in training mode)"))
    # In [0, 2), so that they also serve as tokens.
    samples = 2 * torch.rand(3, *model.input_shape, generator=torch.Generator().manual_seed(0))
    samples = samples.to(next(model.front.parameters()).device)
    with torch.no_grad():
        one, other = ((model.front(batch), model.auxiliary_head(model.front(batch))) for batch in (samples[:2], samples[::2]))
    for a, b in zip(one, other, strict=True):
        if not torch.allclose(a[0], b[0], rtol=1e-3, atol=1e-3 * float(b[0].abs().max())):
            raise ProgramError(sentence.format("an operation of the client's part (batch normalisation or dropout in training mode)"))


def _call(module: nn.Module, weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    names = [name for name, _ in module.named_parameters()]
    result: torch.Tensor = functional_call(module, dict(zip(names, weights, strict=True)), (x,))
    return result


def _leaves(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    return [weight.detach().requires_grad_() for weight in weights]


def _gradients(output: torch.Tensor, leaves: list[torch.Tensor], weighting: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    # torch.func.grad would differentiate norms by formulas that can be differentiated again, which are several times slower.
    return torch.autograd.grad(output, leaves, weighting, allow_unused=True, materialize_grads=True)
