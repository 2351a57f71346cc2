"""The auxiliary head that fits any cut: images are pooled, sequences averaged, then one linear layer."""

from __future__ import annotations

import torch
from torch import nn

MAX_POOLED = 4
"""A head sees an image as at most 4 x 4 places: its weights then depend on the channels at the cut, not on the size of the images."""


class MeanOverPositions(nn.Module):
    """[B, T, D] -> [B, D]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def auxiliary_head(cut: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a head for activations of this shape per sample, [D], [T, D] or [C, H, W].

    Raises:
        ValueError: the shape is none of these.

    """
    match cut:
        case (width,):
            return nn.Sequential(nn.Linear(width, num_classes))
        case (_, width):
            return nn.Sequential(MeanOverPositions(), nn.Linear(width, num_classes))
        case (channels, height, width):
            places = min(height, MAX_POOLED), min(width, MAX_POOLED)
            pool = [nn.AdaptiveAvgPool2d(places)] if places != (height, width) else []
            return nn.Sequential(*pool, nn.Flatten(), nn.Linear(channels * places[0] * places[1], num_classes))
    raise ValueError(
        f"there is an auxiliary head for activations of one, two or three dimensions, not of {len(cut)} ({'x'.join(map(str, cut))}): "
        "give your own with head=python:MODULE:CALLABLE"
    )
