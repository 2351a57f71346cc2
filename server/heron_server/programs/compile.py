"""A split model's side of the client as pure functions of weights and data, ready for export."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import vmap

from heron_common.errors import ProgramError
from heron_common.numerics.tensors import DType
from heron_common.specification.model_spec import WEIGHTS_BY_DIRECTION, ProgramKind
from heron_server.models.batch_norm import moving_layers, normalising
from heron_server.models.block_heads import blocks_apart
from heron_server.models.split_model import SplitModel, device_of, predict, trained_parameters
from heron_server.programs.client_part import ClientPart, Tensors


class LossProgram(nn.Module):
    """theta_c, theta_a, x, y -> z, per-sample local loss, and new running statistics where the model has any."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._part = (part,)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, client_model: Tensors, auxiliary_head: Tensors, statistics: Tensors, base: Tensors
    ) -> tuple[torch.Tensor, ...]:
        (part,) = self._part
        widened_base, moving = part.widen(base), part.copied(statistics)
        z = part.front(x, client_model, base=widened_base, moving=moving)
        losses = part.model.sample_losses(part.head(x, z, trained=auxiliary_head, base=widened_base, moving=moving), y)
        return z, losses, *moving.values()


class FrontProgram(nn.Module):
    """theta_c, x -> z, and new running statistics where the front has any."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._part = (part,)

    def forward(self, x: torch.Tensor, client_model: Tensors, statistics: Tensors, base: Tensors) -> tuple[torch.Tensor, ...]:
        (part,) = self._part
        moving = part.copied(statistics)
        return part.front(x, client_model, base=part.widen(base), moving=moving), *moving.values()


class GradientProgram(nn.Module):
    """theta_c, theta_a, x, y -> z, per-sample local loss, gradients of the losses' sum, and new running statistics where the model has any.

    Where the front has local losses within it, z and the loss that is returned are those at its end, and the gradients those of the sum of all. Where some
    tensors of it are without gradients, nothing is kept or computed for theirs.
    """

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._part, self._losses = (part,), LossProgram(part)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, client_model: Tensors, auxiliary_head: Tensors, statistics: Tensors, base: Tensors
    ) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            (part,) = self._part
            constant = part.model.without_gradient
            front, head = [*client_model[:constant], *_leaves(client_model[constant:])], _leaves(auxiliary_head)
            with blocks_apart(part.model.front, part.inner_places) as outputs:
                z, losses, *moved = self._losses(x, y, front, head, statistics, base)
            inner = part.inner_losses(x, y, outputs=outputs, trained=head)
            return z.detach(), losses.detach(), *_gradients(sum(inner, losses.sum()), [*front[constant:], *head]), *moved


class SurrogateProgram(nn.Module):
    """theta_c, x, lambda -> z, per-sample <lambda, z>."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._part = (part,)

    def forward(
        self, x: torch.Tensor, cut_gradient: torch.Tensor, client_model: Tensors, base: Tensors
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (part,) = self._part
        z = part.front(x, client_model, base=part.widen(base))
        return z, (z * cut_gradient).flatten(1).sum(1)


class PullbackProgram(nn.Module):
    """theta_c, x, lambda -> gradients of the sum of <lambda, z>."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self._part = (part,)

    def forward(self, x: torch.Tensor, cut_gradient: torch.Tensor, client_model: Tensors, base: Tensors) -> tuple[torch.Tensor, ...]:
        (part,) = self._part
        with torch.enable_grad():
            front = _leaves(client_model)
            return _gradients(part.front(x, front, base=part.widen(base)), front, cut_gradient)


class ByDirection(nn.Module):
    """A program over equal groups of samples, each with trained weights of its own: x and what goes with it, weights [directions, d], base.

    A row of the weights is front and head as one flat buffer; what the program does not read of it is passed over.
    """

    def __init__(self, kind: ProgramKind, program: nn.Module, *, shapes: list[torch.Size], num_front: int) -> None:
        super().__init__()
        self._kind, self._program, self._shapes, self._num_front = kind, (program,), shapes, num_front

    def forward(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        *samples, weights, base = arguments
        grouped = [sample.unflatten(0, (len(weights), -1)) for sample in samples]
        outputs = vmap(lambda row, *group: self.of_group(row, list(group), base))(weights, *grouped)
        return tuple(output.flatten(0, 1) for output in outputs)

    def of_group(self, row: torch.Tensor, samples: Tensors, base: Tensors) -> tuple[torch.Tensor, ...]:
        """Return the program's outputs for one group and its weights, [d]."""
        pieces = torch.split(row, [shape.numel() for shape in self._shapes])
        tensors = [piece.reshape(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        front, head = tensors[: self._num_front], tensors[self._num_front :]
        (program,) = self._program
        trained = (front, head, []) if self._kind is ProgramKind.LOSS else (front, []) if self._kind is ProgramKind.FRONT else (front,)
        outputs: tuple[torch.Tensor, ...] = program(*samples, *trained, base)
        return outputs


@dataclass(frozen=True)
class CompiledFunction:
    """A function to export: module, example arguments in order, and the names of its inputs and outputs.

    The module computes gradients with autograd; it is what the exported program is compared with.
    """

    kind: ProgramKind
    module: nn.Module
    _: KW_ONLY
    arguments: tuple[object, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    by_batch: bool = False
    directions: int = 1
    parts: tuple[nn.Module, ...] = ()
    """Front and, where it is run, head: what a sample passes, in this order."""

    @property
    def differentiates(self) -> bool:
        """Whether some outputs are gradients."""
        return self.kind in (ProgramKind.GRADIENT, ProgramKind.PULLBACK)

    @property
    def is_rewritten(self) -> bool:
        """Whether the graph is rewritten before it is exported: for gradients, where weights are stored narrowly, where the batch normalises."""
        frozen = self.arguments[-1]
        narrow = isinstance(frozen, list) and any(stored.dtype is not torch.float32 for stored in frozen)
        return self.differentiates or narrow or self.by_batch


def compile_function(model: SplitModel, kind: ProgramKind, *, micro_batch: int, directions: int = 1) -> CompiledFunction:
    """Return the function of one program for runs of `micro_batch` samples, in `directions` groups with weights of their own.

    Inputs are named `x`, `y` or `cut_gradient`, `client_model.<i>`, `auxiliary_head.<i>` in flat-buffer order, `base.<i>` in the base's order;
    outputs `activations`, `losses` or `inner_products`, then `gradients.<input>`, but none of the model's first `without_gradient` tensors.
    Where the model has running statistics those programs that a base pass may run also have inputs `statistics.<i>` and outputs `new_statistics.<i>`,
    in the order of the statistics' flat buffer; `micro_batch` is then the batch.
    With several directions the trained weights are one input, `weights` [directions, d], and neither gradients nor running statistics are computed.

    Raises:
        ProgramError: the model normalises across samples without running statistics, or is in a mode that draws random numbers.

    """
    _refuse_dependent_samples(model)
    x, y, cut_gradient = (samples := _samples(model, micro_batch)).values()
    front = [p.detach().cpu() for _, p in trained_parameters(model.front)]
    head = [p.detach().cpu() for _, p in trained_parameters(model.auxiliary_head)]
    part = ClientPart(model, with_head=kind in (ProgramKind.LOSS, ProgramKind.GRADIENT))
    bases, base = [name for name, _ in part.base_inputs()], [stored for _, stored in part.base_inputs()]
    fronts = tuple(f"client_model.{i}" for i in range(len(front)))
    heads = tuple(f"auxiliary_head.{i}" for i in range(len(head)))
    gradients = tuple(f"gradients.{name}" for name in (*fronts, *heads))
    statistics = list(part.statistics.values())
    moving = tuple(f"statistics.{i}" for i in range(len(statistics)))
    moved = tuple(f"new_{name}" for name in moving)
    arguments: tuple[object, ...]
    match kind:
        case ProgramKind.FRONT:
            module: nn.Module = FrontProgram(part)
            arguments, inputs, outputs = (x, front, statistics, base), ("x", *fronts, *moving), ("activations", *moved)
        case ProgramKind.LOSS | ProgramKind.GRADIENT:
            module = LossProgram(part) if kind is ProgramKind.LOSS else GradientProgram(part)
            arguments, inputs = (x, y, front, head, statistics, base), ("x", "y", *fronts, *heads, *moving)
            outputs = ("activations", "losses", *(gradients[model.without_gradient :] if kind is ProgramKind.GRADIENT else ()), *moved)
        case ProgramKind.SURROGATE | ProgramKind.PULLBACK:
            module = SurrogateProgram(part) if kind is ProgramKind.SURROGATE else PullbackProgram(part)
            arguments, inputs = (x, cut_gradient, front, base), ("x", "cut_gradient", *fronts)
            outputs = ("activations", "inner_products") if kind is ProgramKind.SURROGATE else gradients[: len(front)]
    if directions > 1:
        samples = {name: sample for name, sample in samples.items() if name in inputs}
        module, weights = _by_direction(kind, module, front=front, head=head, directions=directions)
        arguments, inputs = (*samples.values(), weights, base), (*samples, WEIGHTS_BY_DIRECTION)
    return CompiledFunction(
        kind,
        module,
        arguments=arguments,
        input_names=(*inputs, *bases),
        output_names=outputs,
        by_batch=model.batch_statistics,
        directions=directions,
        parts=part.modules,
    )


def _samples(model: SplitModel, rows: int) -> dict[str, torch.Tensor]:
    """Return example samples, labels and gradients at the cut by the name of their input."""
    spec = model.to_spec()
    labels = torch.int64 if spec.labels.dtype is DType.INT64 else torch.float32
    return {
        "x": model.example(rows),
        "y": torch.zeros(rows, *spec.labels.shape, dtype=labels),
        "cut_gradient": torch.zeros(rows, *spec.cut.shape),
    }


def _by_direction(
    kind: ProgramKind, program: nn.Module, *, front: Tensors, head: Tensors, directions: int
) -> tuple[nn.Module, torch.Tensor]:
    """Return a program over groups with trained weights of their own, and these weights: for each direction the model's."""
    weights = torch.cat([p.reshape(-1) for p in (*front, *head)]).expand(directions, -1).contiguous()
    return ByDirection(kind, program, shapes=[p.shape for p in (*front, *head)], num_front=len(front)), weights


def _refuse_dependent_samples(model: SplitModel) -> None:
    """Refuse a model in which a sample's output depends on the rest of its batch: micro-batches and groups would silently change it.

    Where the model has running statistics its plan takes whole batches, and the layers that they belong to may depend on them; nothing else may.

    Raises:
        ProgramError: it does.

    """
    sentence = (
        "{} makes a sample's output depend on the rest of its batch or on chance: use GroupNorm, call eval() to freeze its statistics, "
        "or let the whole batch normalise (norm=batch, batch_norm=batch)"
    )
    parts = (model.front, model.auxiliary_head)
    allowed = {id(layer) for part in parts for layer in moving_layers(part).values()} if model.batch_statistics else set()
    for module in (m for part in parts for m in part.modules() if id(m) not in allowed):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ProgramError(sentence.format(f"batch normalisation ({type(module).__name__} in training mode)"))
    generator = np.random.Generator(np.random.Philox(key=0))
    samples = torch.from_numpy(model.random_batch(3, generator)[0]).to(device_of(model.front))
    with torch.no_grad(), normalising(False, *parts) if model.batch_statistics else nullcontext():
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
