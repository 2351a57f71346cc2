"""Blocks and norms of residual networks (He et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

MakeNorm = Callable[[int], nn.Module]
"""Channels -> a norm over them."""


class BasicBlock(nn.Module):
    """ReLU(shortcut(x) + norm(conv(ReLU(norm(conv(x)))))); [B, c_in, H, W] -> [B, c_out, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, *, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.convolution1 = convolution(channels_in, width, kernel=3, stride=stride)
        self.norm1 = norm(width)
        self.convolution2 = convolution(width, width, kernel=3, stride=1)
        self.norm2 = norm(width)
        self.shortcut = _shortcut(channels_in, width, stride=stride, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu(self.norm1(self.convolution1(x)))
        return nn.functional.relu(self.shortcut(x) + self.norm2(self.convolution2(hidden)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; [B, c_in, H, W] -> [B, 4 width, H/stride, W/stride]. The 3x3 convolution strides, as in torchvision."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, *, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.convolution1 = convolution(channels_in, width, kernel=1, stride=1)
        self.norm1 = norm(width)
        self.convolution2 = convolution(width, width, kernel=3, stride=stride)
        self.norm2 = norm(width)
        self.convolution3 = convolution(width, width * self.expansion, kernel=1, stride=1)
        self.norm3 = norm(width * self.expansion)
        self.shortcut = _shortcut(channels_in, width * self.expansion, stride=stride, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu(self.norm1(self.convolution1(x)))
        hidden = nn.functional.relu(self.norm2(self.convolution2(hidden)))
        return nn.functional.relu(self.shortcut(x) + self.norm3(self.convolution3(hidden)))


def _shortcut(channels_in: int, channels_out: int, *, stride: int, norm: MakeNorm) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(convolution(channels_in, channels_out, kernel=1, stride=stride), norm(channels_out))


def convolution(channels_in: int, channels_out: int, *, kernel: int, stride: int) -> nn.Conv2d:
    """Return a convolution without bias, which the norm behind it would shift away, drawn as in He et al. 2015."""
    made = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made
