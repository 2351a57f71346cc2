"""The server's part of the model and its first-order steps. Not thread-safe: one thread, the trainer's, calls it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.numerics.tensors import Float32Array, Float64Array
from heron_common.options import option
from heron_server.models.batch_norm import flat_statistics, load_flat_statistics
from heron_server.models.split_model import (
    SplitModel,
    flat_parameters,
    load_flat_parameters,
    load_moving_state,
    moving_state,
    predict,
    trained_parameters,
)
from heron_server.training.adam import SmallAdam
from heron_server.training.aligned import aligned_tensor
from heron_server.training.evaluation import Score
from heron_server.training.proportion import Proportion, StepRefusal
from heron_server.training.random_state import load_random_state, random_state
from heron_server.training.replicas import BackReplicas, load_moments
from heron_server.training.server_step import KeptBuffers, StepOutcome, SteppedPart, backward, judge_step, longest_gradients, take_step
from heron_server.training.uploads import DecodedUpload


@dataclass(frozen=True)
class TrainerSettings:
    """How the server steps."""

    server_optimiser: Literal["sgd", "adam", "adamw"] = field(
        default="adam", metadata=option("optimiser of back and head: sgd, adam or adamw")
    )
    server_learning_rate: float = field(
        default=2e-3,
        metadata=option("eta_s; 2e-3 suits Adam on small backs, and a head of many inputs takes less by itself", above=0),
    )
    _: KW_ONLY
    server_weight_decay: float = field(default=0.0, metadata=option("weight decay of the server's optimiser", at_least=0))
    server_momentum: float = field(default=0.0, metadata=option("momentum of sgd", at_least=0, below=1))
    device: str = field(default="auto", metadata=option("auto (cuda if there is one), cpu, cuda or cuda:N", common=True))
    precision: Literal["fp32", "bf16"] = field(
        default="fp32", metadata=option("fp32, or bf16 for automatic mixed precision in the server's steps")
    )


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for _, parameter in trained_parameters(module)]


_OPTIMISERS: dict[str, Callable[[Any, TrainerSettings], torch.optim.Optimizer]] = {
    "sgd": lambda p, s: torch.optim.SGD(p, s.server_learning_rate, momentum=s.server_momentum, weight_decay=s.server_weight_decay),
    "adam": lambda p, s: SmallAdam(p, s.server_learning_rate, weight_decay=s.server_weight_decay),
    "adamw": lambda p, s: SmallAdam(p, s.server_learning_rate, weight_decay=s.server_weight_decay, decoupled_weight_decay=True),
}
"""From parameters, or groups of them."""

HEAD_RATE_TIMES_INPUTS = 8.0
"""The head's rate under Adam is at most this over the inputs of a layer. Adam moves every weight by about the rate whatever the gradient, so that a logit moves
by the rate times the sum of all inputs: a linear head on the 65,536 numbers of a ResNet's first block at 32x32 went from a loss of 2.4 to 57 in a round
at 2e-3, and to 1.1 at 8 / 65,536. Heads of up to 4,000 inputs keep the default rate."""


def _head_parameters(head: nn.Module, settings: TrainerSettings) -> list[dict[str, Any]]:
    """Return a group for each trained tensor of the head, with the rate that its inputs allow."""

    def rate(parameter: nn.Parameter) -> float:
        if settings.server_optimiser == "sgd" or parameter.dim() < 2:
            return settings.server_learning_rate
        return min(settings.server_learning_rate, HEAD_RATE_TIMES_INPUTS / parameter[0].numel())

    return [{"params": [parameter], "lr": rate(parameter)} for parameter in _trained(head)]


class Trainer:
    """Back and, where the plan says so, auxiliary head, stepped on what clients upload."""

    def __init__(self, model: SplitModel, settings: TrainerSettings, *, trains_head: bool, replicates_back: bool = False) -> None:
        self.model = model
        self.device = choose_device(settings.device)
        self._settings = settings
        self._precision = settings.precision
        for module in (model.front, model.auxiliary_head, model.back):
            module.to(self.device)
        self._trains_head = trains_head
        # Made with the first step: torch imports its compiler for the first optimiser, which takes as long as all else at the start of a small server.
        self._optimisers: dict[str, torch.optim.Optimizer] = {}
        self.server_version = 0
        self._proportion = Proportion()
        self.replicas = (
            BackReplicas(model.back, lambda back: _OPTIMISERS[settings.server_optimiser](_trained(back), settings))
            if replicates_back
            else None
        )

    def judge(self, upload: DecodedUpload, client_id: str = "") -> Float32Array:
        """Return per-sample losses [1 + probes, B] of stacked activations [(1 + probes) * B, ...] by the present back, in eval mode."""
        activations, batch = upload.activations, len(upload.labels)
        back, _ = self._back_of(client_id)
        back.eval()
        with torch.no_grad():
            y, mask = self._tensor(upload.labels), self._mask(upload)
            losses = [
                self.model.sample_losses(predict(back, self._tensor(activations[start : start + batch]), mask), y)
                for start in range(0, len(activations), batch)
            ]
        judged: Float32Array = torch.stack(losses).float().cpu().numpy()
        return judged

    def score(self, upload: DecodedUpload, score: Score) -> None:
        """Score held-out samples by the present back, in eval mode; of several replicas by their average. Changes nothing."""
        self.model.back.eval()
        with torch.no_grad():
            score.add(predict(self.model.back, self._tensor(upload.activations), self._mask(upload)), self._tensor(upload.labels))

    def train(
        self, upload: DecodedUpload, client_id: str = "", *, wants_cut_gradient: bool = False, gradient_limit: float | None = None
    ) -> StepOutcome:
        """Take one first-order step of the back, and of the head if the server trains it, on one batch; a step that would do harm moves nothing.

        A gradient of the back that is longer than `gradient_limit` is shortened to it. The gradients at the cut are those of the back before its step: lambda_i = d loss_i / d z_i.
        """
        return self._step(
            upload, client_id, wants_cut_gradient=wants_cut_gradient, gradient_limit=math.inf if gradient_limit is None else gradient_limit
        )

    def examine(self, upload: DecodedUpload, client_id: str = "") -> StepRefusal | None:
        """Return why no step may be taken on one batch, and take none; at once where its activations are like all others."""
        if self._proportion.is_ordinary("activations", upload.level()):
            return None
        return self._step(upload, client_id, wants_cut_gradient=False, gradient_limit=None).refusal

    def _step(self, upload: DecodedUpload, client_id: str, *, wants_cut_gradient: bool, gradient_limit: float | None) -> StepOutcome:
        """Take a step, or without a limit say only whether it may be taken."""
        figures = {"activations": upload.level()}
        refusal = self._proportion.judge("activations", figures["activations"])
        if refusal is not None:
            return StepOutcome(np.zeros(0, np.float32), None, refusal=refusal)
        z, y, mask = self._tensor(upload.activations[: len(upload.labels)]), self._tensor(upload.labels), self._mask(upload)
        z.requires_grad_(wants_cut_gradient)
        back, optimiser = self._back_of(client_id)
        buffers = KeptBuffers([back, self.model.auxiliary_head] if self._trains_head else [back])
        losses = self._losses(back, z, mask=mask, y=y)
        parts = [SteppedPart("back", optimiser=optimiser, loss=losses.mean())]
        if self._trains_head:
            head_loss = self._losses(self.model.auxiliary_head, z.detach(), mask=mask, y=y).mean()
            parts.append(SteppedPart("head", optimiser=self._optimiser_of("head"), loss=head_loss))
        lengths = backward(parts)
        refusal, shortened = judge_step(parts, lengths, buffers=buffers, known=self._proportion), False
        if refusal is None and gradient_limit is not None:
            limits = longest_gradients(parts, self._proportion)
            shortened = take_step(parts, lengths, limits | {"back": min(limits["back"], gradient_limit)})
            self._note(figures | lengths)
        else:
            buffers.put_back()
        return StepOutcome(
            losses.detach().cpu().numpy(),
            float(parts[1].loss.detach()) if len(parts) > 1 else None,
            refusal=refusal,
            # The mean's gradient times B is that of each sample's own loss, whatever the batch.
            cut_gradient=(z.grad * len(upload.labels)).float().cpu().numpy() if z.grad is not None else None,
            gradient_norm=lengths["back"] if refusal is None else None,
            shortened=shortened,
        )

    def _note(self, figures: dict[str, float]) -> None:
        self.server_version += 1
        if self._proportion.note(figures):
            for optimiser in [*self._optimisers.values(), *(self.replicas.optimisers() if self.replicas is not None else ())]:
                optimiser.state.clear()

    def close_round(self, members: Sequence[str], weights: Float64Array) -> None:
        """Average the backs of the clients whose updates count, where every client has one."""
        if self.replicas is not None:
            self.replicas.average(members, weights)

    def _back_of(self, client_id: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        if self.replicas is None:
            return self.model.back, self._optimiser_of("back")
        return self.replicas.of(client_id)

    def _optimiser_of(self, part: str) -> torch.optim.Optimizer:
        """Return the optimiser of "back" or "head", made on first use."""
        if part not in self._optimisers:
            head = self.model.auxiliary_head
            parameters = _head_parameters(head, self._settings) if part == "head" else _trained(self.model.back)
            self._optimisers[part] = _OPTIMISERS[self._settings.server_optimiser](parameters, self._settings)
        return self._optimisers[part]

    def client_weights(self) -> tuple[Float32Array, Float32Array]:
        """Return copies of front and head, flat."""
        return flat_parameters(self.model.front), flat_parameters(self.model.auxiliary_head)

    def set_client_weights(self, front: Float32Array, head: Float32Array | None) -> None:
        """Take over averaged weights."""
        load_flat_parameters(self.model.front, front)
        if head is not None:
            load_flat_parameters(self.model.auxiliary_head, head)

    def statistics(self) -> Float32Array:
        """Return a copy of the running statistics of front and head that clients move, flat."""
        return flat_statistics(list(self.model.statistics.values()))

    def set_statistics(self, flat: Float32Array) -> None:
        """Take over averaged running statistics."""
        load_flat_statistics(self.model.statistics, flat)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the state that moves: weights and buffers of all three parts and the optimisers' moments; safe to keep."""
        state = {
            f"{part}.{name}": value.detach().cpu().clone()
            for part, module in self._parts().items()
            for name, value in moving_state(module).items()
        }
        for key, optimiser in self._optimisers.items():
            for index, values in optimiser.state_dict()["state"].items():
                state |= {
                    f"optimiser.{key}.{index}.{n}": v.detach().cpu().clone() for n, v in values.items() if isinstance(v, torch.Tensor)
                }
        state |= {f"{_PROPORTION}{name}": torch.from_numpy(array) for name, array in self._proportion.arrays().items()}
        return state | (self.replicas.tensors() if self.replicas is not None else {}) | random_state(self.device)

    def load_tensors(self, tensors: dict[str, torch.Tensor], server_version: int) -> None:
        """Go back to a state that `tensors` returned."""
        for part, module in self._parts().items():
            load_moving_state(module, {name[len(part) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{part}.")})
        self._optimisers.clear()
        for key in ("back", "head") if self._trains_head else ("back",):
            if any(name.startswith(f"optimiser.{key}.") for name in tensors):
                load_moments(self._optimiser_of(key), tensors, f"optimiser.{key}.")
        if self.replicas is not None:
            self.replicas.load(tensors)
        known = {name[len(_PROPORTION) :]: value.numpy() for name, value in tensors.items() if name.startswith(_PROPORTION)}
        self._proportion.restore(known)
        load_random_state(tensors, self.device)
        self.server_version = server_version

    def _parts(self) -> dict[str, nn.Module]:
        return {"front": self.model.front, "head": self.model.auxiliary_head, "back": self.model.back}

    def _losses(self, module: nn.Module, z: torch.Tensor, *, mask: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
        module.train()
        with self._autocast():
            return self.model.sample_losses(predict(module, z, mask), y).float()

    def _mask(self, upload: DecodedUpload) -> torch.Tensor | None:
        return None if upload.mask is None else self._tensor(upload.mask).bool()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()

    def _tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return aligned_tensor(array, self.device)


_PROPORTION = "proportion."
"""How the names of what is known of ordinary steps begin; checkpoints of earlier versions have none, and it is learnt anew."""


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
