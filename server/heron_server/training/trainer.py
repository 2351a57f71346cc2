"""The server's part of the model and its first-order steps. Not thread-safe: one thread, the trainer's, calls it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.tensors import Float32Array, Int64Array
from heron_server.models.split_model import SplitModel, flat_parameters, load_flat_parameters


@dataclass(frozen=True)
class TrainerSettings:
    """How the server steps.

    Attributes:
        optimiser: sgd, adam or adamw, for back and head alike.
        learning_rate: eta_s.
        weight_decay, momentum: as torch understands them; momentum for sgd only.
        device: cpu, cuda, cuda:1, or auto for cuda if there is one.
        precision: fp32, or bf16 for autocast.

    """

    optimiser: str
    learning_rate: float
    weight_decay: float
    momentum: float
    device: str
    precision: str


@dataclass(frozen=True)
class StepLosses:
    """Mean losses of one step before it; `head` is None if the server does not train the head; `skipped` if a loss was not finite."""

    server: float
    head: float | None
    skipped: bool


_OPTIMISERS: dict[str, Callable[[nn.Module, TrainerSettings], torch.optim.Optimizer]] = {
    "sgd": lambda m, s: torch.optim.SGD(m.parameters(), s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay),
    "adam": lambda m, s: torch.optim.Adam(m.parameters(), s.learning_rate, weight_decay=s.weight_decay),
    "adamw": lambda m, s: torch.optim.AdamW(m.parameters(), s.learning_rate, weight_decay=s.weight_decay),
}


class Trainer:
    """Back and, where the plan says so, auxiliary head, stepped on what clients upload."""

    def __init__(self, model: SplitModel, settings: TrainerSettings, trains_head: bool) -> None:
        self.model = model
        self.device = choose_device(settings.device)
        self._precision = settings.precision
        for module in (model.front, model.auxiliary_head, model.back):
            module.to(self.device)
        self._optimisers = {"back": _OPTIMISERS[settings.optimiser](model.back, settings)}
        if trains_head:
            self._optimisers["head"] = _OPTIMISERS[settings.optimiser](model.auxiliary_head, settings)
        self.server_version = 0

    def judge(self, activations: Float32Array, labels: Int64Array) -> Float32Array:
        """Return per-sample losses [1 + probes, B] of stacked activations [(1 + probes) * B, ...] by the present back, in eval mode."""
        batch = len(labels)
        self.model.back.eval()
        with torch.no_grad():
            y = self._tensor(labels)
            losses = [
                self.model.sample_losses(self.model.back(self._tensor(activations[start : start + batch])), y)
                for start in range(0, len(activations), batch)
            ]
        judged: Float32Array = torch.stack(losses).float().cpu().numpy()
        return judged

    def train(self, activations: Float32Array, labels: Int64Array) -> StepLosses:
        """Take one first-order step of the back, and of the head if the server trains it, on one upload; a non-finite loss moves nothing."""
        z, y = self._tensor(activations), self._tensor(labels)
        losses = {"back": self._loss(self.model.back, z, y)}
        if "head" in self._optimisers:
            losses["head"] = self._loss(self.model.auxiliary_head, z, y)
        values = {part: float(loss.detach()) for part, loss in losses.items()}
        skipped = not all(math.isfinite(value) for value in values.values())
        if not skipped:
            for part, loss in losses.items():
                self._optimisers[part].zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimisers[part].step()
            self.server_version += 1
        return StepLosses(values["back"], values.get("head"), skipped)

    def client_weights(self) -> tuple[Float32Array, Float32Array]:
        """Return copies of front and head, flat."""
        return flat_parameters(self.model.front), flat_parameters(self.model.auxiliary_head)

    def set_client_weights(self, front: Float32Array, head: Float32Array | None) -> None:
        """Take over averaged weights."""
        load_flat_parameters(self.model.front, front)
        if head is not None:
            load_flat_parameters(self.model.auxiliary_head, head)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the state: weights of all three parts and the optimisers' moments; safe to keep."""
        state = {
            f"{part}.{name}": value.detach().cpu().clone()
            for part, module in self._parts().items()
            for name, value in module.state_dict().items()
        }
        for key, optimiser in self._optimisers.items():
            for index, values in optimiser.state_dict()["state"].items():
                state |= {
                    f"optimiser.{key}.{index}.{n}": v.detach().cpu().clone() for n, v in values.items() if isinstance(v, torch.Tensor)
                }
        return state

    def load_tensors(self, tensors: dict[str, torch.Tensor], server_version: int) -> None:
        """Go back to a state that `tensors` returned."""
        for part, module in self._parts().items():
            module.load_state_dict({name[len(part) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{part}.")})
        for key, optimiser in self._optimisers.items():
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith(f"optimiser.{key}."):
                    _, _, index, field = name.split(".", 3)
                    moments.setdefault(int(index), {})[field] = value.clone()
            state: dict[str, Any] = optimiser.state_dict()
            optimiser.load_state_dict({**state, "state": moments})
        self.server_version = server_version

    def _parts(self) -> dict[str, nn.Module]:
        return {"front": self.model.front, "head": self.model.auxiliary_head, "back": self.model.back}

    def _loss(self, module: nn.Module, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        module.train()
        with self._autocast():
            return self.model.sample_losses(module(z), y).float().mean()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()

    def _tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def choose_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is cuda if there is one, else the CPU.

    Raises:
        ConfigurationError: there is no such device here.

    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise ConfigurationError(
            f"device {name!r} cannot be used here ({str(exc).splitlines()[0]}): use auto, cpu or a cuda device"
        ) from exc
    return device
