"""Batch normalisation whose statistics are constants: it treats every sample alike, so it may stand on a device."""

from __future__ import annotations

from typing import Self

from torch import nn


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
        if type(module) in _FROZEN and not module.training:
            # The layer keeps its tensors and its place in the model; only what `train` does changes.
            module.__class__ = _FROZEN[type(module)]
