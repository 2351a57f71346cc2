"""What a split model is: front (theta_c), auxiliary head (theta_a), back (theta_s) and a per-sample loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from heron_common.assignment import ModelSpec
from heron_common.tensors import DType, Float32Array, TensorSpec

SampleLosses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SplitModel:
    """A model cut in two, with a head that stands in for the back on the device.

    Attributes:
        name: model and options in canonical form; part of the key under which compiled programs are cached.
        front: x [B, *input_shape] -> activations z [B, *cut].
        auxiliary_head: z -> logits [B, num_classes].
        back: z -> logits [B, num_classes].
        sample_losses: (logits, y [B] int64) -> [B].
        input_shape: of one sample.
        num_classes: labels lie in [0, num_classes).

    No part normalises across samples, so micro-batches and direction groups change nothing but rounding.

    """

    name: str
    front: nn.Module
    auxiliary_head: nn.Module
    back: nn.Module
    sample_losses: SampleLosses
    input_shape: tuple[int, ...]
    num_classes: int

    def to_spec(self) -> ModelSpec:
        """Return the client's tensors in flat-buffer order and the shape at the cut."""
        with torch.no_grad():
            cut = self.front(torch.zeros(2, *self.input_shape, device=next(self.front.parameters()).device))
        return ModelSpec(
            client_model=parameter_specs(self.front),
            auxiliary_head=parameter_specs(self.auxiliary_head),
            cut=TensorSpec("activations", DType.FLOAT32, tuple(cut.shape[1:])),
        )


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log softmax(logits)[label] per sample, [B]."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def parameter_specs(module: nn.Module) -> tuple[TensorSpec, ...]:
    """Return name and shape of each trainable tensor, in the order of the flat buffer."""
    return tuple(TensorSpec(name, DType.FLOAT32, tuple(p.shape) or (1,)) for name, p in module.named_parameters())


def flat_parameters(module: nn.Module) -> Float32Array:
    """Return a copy of all parameters as one float32 array."""
    array: Float32Array = torch.cat([p.detach().reshape(-1).float() for p in module.parameters()]).cpu().numpy().copy()
    return array


def load_flat_parameters(module: nn.Module, flat: Float32Array) -> None:
    """Set all parameters from one float32 array; raises ValueError if the sizes differ."""
    parameters = list(module.parameters())
    if flat.size != sum(p.numel() for p in parameters):
        raise ValueError(f"expected {sum(p.numel() for p in parameters)} weights, got {flat.size}")
    source = torch.from_numpy(flat.copy())
    offset = 0
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(source[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()
