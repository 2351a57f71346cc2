"""A split model's side of the client as pure functions of weights and data, ready for export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from heron_common.assignment import ProgramKind
from heron_common.errors import ProgramError
from heron_common.tensors import DType
from heron_server.models.base import named_frozen, widened
from heron_server.models.split_model import SplitModel, device_of, predict, trained_parameters

Tensors = list[torch.Tensor]


class LossProgram(nn.Module):
    """theta_c, theta_a, x, y -> z, per-sample local loss."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._part = (part,)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, client_model: Tensors, auxiliary_head: Tensors, base: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (part,) = self._part
        widened_base = part.widen(base)
        z = part.front(x, client_model, widened_base)
        return z, part.model.sample_losses(part.head(x, z, auxiliary_head, widened_base), y)


class FrontProgram(nn.Module):
    """theta_c, x -> z."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._part = (part,)

    def forward(self, x: torch.Tensor, client_model: Tensors, base: Tensors) -> torch.Tensor:
        (part,) = self._part
        return part.front(x, client_model, part.widen(base))


class GradientProgram(nn.Module):
    """theta_c, theta_a, x, y -> z, per-sample local loss, gradients of the losses' sum."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._losses = LossProgram(part)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, client_model: Tensors, auxiliary_head: Tensors, base: Tensors
    ) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            front, head = _leaves(client_model), _leaves(auxiliary_head)
            z, losses = self._losses(x, y, front, head, base)
            return z.detach(), losses.detach(), *_gradients(losses.sum(), [*front, *head])


class SurrogateProgram(nn.Module):
    """theta_c, x, lambda -> z, per-sample <lambda, z>."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._front = FrontProgram(part)

    def forward(
        self, x: torch.Tensor, cut_gradient: torch.Tensor, client_model: Tensors, base: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        z = self._front(x, client_model, base)
        return z, (z * cut_gradient).flatten(1).sum(1)


class PullbackProgram(nn.Module):
    """theta_c, x, lambda -> gradients of the sum of <lambda, z>."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._front = FrontProgram(part)

    def forward(self, x: torch.Tensor, cut_gradient: torch.Tensor, client_model: Tensors, base: Tensors) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            front = _leaves(client_model)
            return _gradients(self._front(x, front, base), front, cut_gradient)


class ClientPart:
    """Front and, where a program has it, head, as functions of their trained and frozen tensors."""

    def __init__(self, model: SplitModel, with_head: bool) -> None:
        self.model = model
        wanted = {id(value) for part in (model.front, *([model.auxiliary_head] if with_head else [])) for _, value in named_frozen(part)}
        self._frozen = [(index, frozen) for index, frozen in enumerate(model.frozen) if id(frozen.value) in wanted]

    def base_inputs(self) -> list[tuple[str, torch.Tensor]]:
        """Return the program inputs of the frozen tensors and what is stored in them."""
        return [
            (f"base.{index}" if place == 0 else f"base.{index}.scales", stored)
            for index, frozen in self._frozen
            for place, stored in enumerate(frozen.stored)
        ]

    def widen(self, base: Tensors) -> dict[int, torch.Tensor]:
        """Return the float32 tensors that stored ones stand for, by the identity of the model's own."""
        stored = iter(base)
        return {id(frozen.value): widened(tuple(next(stored) for _ in frozen.stored)) for _, frozen in self._frozen}

    def front(self, x: torch.Tensor, trained: Tensors, base: dict[int, torch.Tensor]) -> torch.Tensor:
        """Return z."""
        z: torch.Tensor = functional_call(self.model.front, _by_name(self.model.front, trained, base), (x,))
        return z

    def head(self, x: torch.Tensor, z: torch.Tensor, trained: Tensors, base: dict[int, torch.Tensor]) -> Any:
        """Return the head's outputs."""
        head, mask = self.model.auxiliary_head, self.model.mask(x)
        return functional_call(head, _by_name(head, trained, base), (z,) if mask is None else (z, mask))


def _by_name(module: nn.Module, trained: Tensors, base: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [name for name, _ in trained_parameters(module)]
    return dict(zip(names, trained, strict=True)) | {name: base[id(value)] for name, value in named_frozen(module)}


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

    @property
    def is_rewritten(self) -> bool:
        """Whether the graph is rewritten before it is exported: for gradients, and where weights are stored narrowly."""
        frozen = self.arguments[-1]
        narrow = isinstance(frozen, list) and any(stored.dtype is not torch.float32 for stored in frozen)
        return self.differentiates or narrow


def compile_function(model: SplitModel, kind: ProgramKind, micro_batch: int) -> CompiledFunction:
    """Return the function of one program for runs of `micro_batch` samples.

    Inputs are named `x`, `y` or `cut_gradient`, `client_model.<i>`, `auxiliary_head.<i>` in flat-buffer order, `base.<i>` in the base's order;
    outputs `activations`, `losses` or `inner_products`, then `gradients.<input>`.

    Raises:
        ProgramError: the model normalises across samples, or is in a mode that draws random numbers.

    """
    _refuse_dependent_samples(model)
    spec = model.to_spec()
    x = model.example(micro_batch)
    labels = torch.int64 if spec.labels.dtype is DType.INT64 else torch.float32
    y = torch.zeros(micro_batch, *spec.labels.shape, dtype=labels)
    cut_gradient = torch.zeros(micro_batch, *spec.cut.shape)
    front = [p.detach().cpu() for _, p in trained_parameters(model.front)]
    head = [p.detach().cpu() for _, p in trained_parameters(model.auxiliary_head)]
    part = ClientPart(model, with_head=kind in (ProgramKind.LOSS, ProgramKind.GRADIENT))
    bases, base = [name for name, _ in part.base_inputs()], [stored for _, stored in part.base_inputs()]
    fronts = tuple(f"client_model.{i}" for i in range(len(front)))
    heads = tuple(f"auxiliary_head.{i}" for i in range(len(head)))
    gradients = tuple(f"gradients.{name}" for name in (*fronts, *heads))
    match kind:
        case ProgramKind.FRONT:
            return CompiledFunction(kind, FrontProgram(part), (x, front, base), ("x", *fronts, *bases), ("activations",))
        case ProgramKind.LOSS | ProgramKind.GRADIENT:
            module: nn.Module = LossProgram(part) if kind is ProgramKind.LOSS else GradientProgram(part)
            outputs = ("activations", "losses", *(gradients if kind is ProgramKind.GRADIENT else ()))
            return CompiledFunction(kind, module, (x, y, front, head, base), ("x", "y", *fronts, *heads, *bases), outputs)
        case ProgramKind.SURROGATE | ProgramKind.PULLBACK:
            module = SurrogateProgram(part) if kind is ProgramKind.SURROGATE else PullbackProgram(part)
            outputs = ("activations", "inner_products") if kind is ProgramKind.SURROGATE else gradients[: len(front)]
            return CompiledFunction(kind, module, (x, cut_gradient, front, base), ("x", "cut_gradient", *fronts, *bases), outputs)


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
    generator = np.random.Generator(np.random.Philox(key=0))
    samples = torch.from_numpy(model.random_batch(3, generator)[0]).to(device_of(model.front))
    with torch.no_grad():
        one, other = (_outputs(model, batch) for batch in (samples[:2], samples[::2]))
    for a, b in zip(one, other, strict=True):
        if not torch.allclose(a[0], b[0], rtol=1e-3, atol=1e-3 * float(b[0].abs().max())):
            raise ProgramError(sentence.format("an operation of the client's part (batch normalisation or dropout in training mode)"))


def _outputs(model: SplitModel, x: torch.Tensor) -> list[torch.Tensor]:
    z = model.front(x)
    outputs = predict(model.auxiliary_head, z, model.mask(x))
    return [z, *(outputs[:1] if isinstance(outputs, tuple) else (outputs,))]


def _leaves(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    return [weight.detach().requires_grad_() for weight in weights]


def _gradients(output: torch.Tensor, leaves: list[torch.Tensor], weighting: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    # torch.func.grad would differentiate norms by formulas that can be differentiated again, which are several times slower.
    return torch.autograd.grad(output, leaves, weighting, allow_unused=True, materialize_grads=True)
