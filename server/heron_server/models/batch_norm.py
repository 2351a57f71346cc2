"""Batch normalisation on devices: with constant statistics, or with those of the whole batch and running statistics that are federated beside the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from heron_common.errors import ProgramError
from heron_common.numerics.tensors import Float32Array


class FrozenStatistics(nn.Module):
    """Stays in evaluation mode whatever `train` is told: (x - mean) / sqrt(variance + epsilon) * weight + bias with stored mean and variance.

    Only weight and bias are trained. With the statistics of a new layer (mean 0, variance 1) that is a scale and a shift and normalises nothing;
    it suits weights that were trained with batch statistics before.
    """

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class FrozenBatchNorm1d(FrozenStatistics, nn.BatchNorm1d):
    """Of [B, C] or [B, C, L]."""


class FrozenBatchNorm2d(FrozenStatistics, nn.BatchNorm2d):
    """Of [B, C, H, W]."""


class FrozenBatchNorm3d(FrozenStatistics, nn.BatchNorm3d):
    """Of [B, C, D, H, W]."""


_FROZEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
}


def keep_frozen(model: nn.Module) -> None:
    """Make batch normalisations that are in evaluation mode now stay there: the server's `train()` would let their statistics move again."""
    for module in model.modules():
        if not module.training:
            freeze_statistics(module)


def freeze_statistics(layer: nn.Module) -> bool:
    """Make a batch normalisation stay in evaluation mode; return whether it is one of those that can."""
    frozen = _FROZEN.get(type(layer))
    if frozen is None:
        return False
    # The layer keeps its tensors and its place in the model; only what `train` does changes.
    layer.__class__ = frozen
    layer.eval()
    return True


def moving_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch normalisations of a module whose statistics are not frozen, by name."""
    return {n: layer for n, layer in module.named_modules() if isinstance(layer, _BatchNorm) and not isinstance(layer, FrozenStatistics)}


def running_statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return running mean and variance of every moving layer, by the names that they have in the module's state.

    Raises:
        ProgramError: a layer has none, or moves them otherwise than by a constant momentum.

    """
    found: dict[str, torch.Tensor] = {}
    for name, layer in moving_layers(module).items():
        if type(layer) not in _FROZEN:
            raise ProgramError(f"batch normalisation {name!r} is a {type(layer).__name__}: use BatchNorm1d, 2d or 3d of torch itself")
        if layer.running_mean is None or layer.running_var is None:
            raise ProgramError(f"batch normalisation {name!r} keeps no running statistics to evaluate with: set track_running_stats=True")
        if layer.momentum is None:
            raise ProgramError(
                f"batch normalisation {name!r} counts its batches, which clients do not share: give it a momentum such as 0.1"
            )
        found |= {f"{name}.running_mean": layer.running_mean, f"{name}.running_var": layer.running_var}
    return found


@contextmanager
def normalising(by_batch: bool, *modules: nn.Module) -> Iterator[None]:
    """Let moving layers normalise by their batch and update what stands in the place of their running statistics, as in training, or by the statistics."""
    layers = [(layer, layer.training) for module in modules for layer in moving_layers(module).values()]
    try:
        for layer, _ in layers:
            layer.training = by_batch
        yield
    finally:
        for layer, training in layers:
            layer.training = training


def flat_statistics(statistics: list[torch.Tensor]) -> Float32Array:
    """Return a copy of running statistics as one float32 array."""
    flat: Float32Array = torch.cat([value.detach().reshape(-1).float() for value in statistics] or [torch.zeros(0)]).cpu().numpy().copy()
    return flat


def load_flat_statistics(statistics: dict[str, torch.Tensor], flat: Float32Array) -> None:
    """Set running statistics from one float32 array; raises ValueError if the sizes differ."""
    expected = sum(value.numel() for value in statistics.values())
    if flat.size != expected:
        raise ValueError(f"expected {expected} running statistics, got {flat.size}")
    source, offset = torch.from_numpy(flat.copy()), 0
    with torch.no_grad():
        for name, value in statistics.items():
            value.copy_(source[offset : offset + value.numel()].view_as(value))
            if name.endswith("running_var"):
                # Whatever a client claims, a variance is not negative: evaluation would take the root of it.
                value.clamp_(min=0)
            offset += value.numel()
