"""A split model's side of the client as pure functions of weights and data, ready for export."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from heron_common.assignment import ProgramKind
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


@dataclass(frozen=True)
class CompiledFunction:
    """A function to export: module, example arguments in order, and the names of its inputs and outputs."""

    kind: ProgramKind
    module: nn.Module
    arguments: tuple[object, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def compile_function(model: SplitModel, kind: ProgramKind, micro_batch: int) -> CompiledFunction:
    """Return the function of one program for runs of `micro_batch` samples.

    Inputs are named `x`, `y`, `client_model.<i>`, `auxiliary_head.<i>` in flat-buffer order; outputs `activations`, `losses`.
    """
    x = torch.zeros(micro_batch, *model.input_shape)
    y = torch.zeros(micro_batch, dtype=torch.int64)
    front = [p.detach().cpu() for p in model.front.parameters()]
    head = [p.detach().cpu() for p in model.auxiliary_head.parameters()]
    front_names = tuple(f"client_model.{i}" for i in range(len(front)))
    head_names = tuple(f"auxiliary_head.{i}" for i in range(len(head)))
    if kind is ProgramKind.FRONT:
        return CompiledFunction(kind, FrontProgram(model), (x, front), ("x", *front_names), ("activations",))
    return CompiledFunction(kind, LossProgram(model), (x, y, front, head), ("x", "y", *front_names, *head_names), ("activations", "losses"))


def _call(module: nn.Module, weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    names = [name for name, _ in module.named_parameters()]
    result: torch.Tensor = functional_call(module, dict(zip(names, weights, strict=True)), (x,))
    return result
