"""ResNet-18 for small images (He et al. 2015) with GroupNorm: its stem and first blocks are the front, the other blocks the back."""

from __future__ import annotations

from enum import StrEnum

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from heron_common.assignment import DataSpecification
from heron_server.models.split_model import SplitModel, cross_entropy


class ResnetBack(StrEnum):
    """What stands behind the cut: the other blocks of the network, or only its classifier, for runs that measure clients."""

    RESNET = "resnet"
    LINEAR = "linear"


class ResnetOptions(BaseModel):
    """Options of the model family `resnet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(64, description="channels of the stem and the first stage; each later stage doubles them", ge=1)
    groups: int = Field(8, description="groups of every GroupNorm, a divisor of width", ge=1)
    blocks: tuple[int, ...] = Field((2, 2, 2, 2), description="basic blocks of each stage; stages after the first halve height and width")
    front_blocks: int = Field(1, description="basic blocks that go to the client after the stem", ge=0)
    back: ResnetBack = Field(ResnetBack.RESNET, description="resnet: the other blocks and the classifier; linear: the classifier alone")

    @model_validator(mode="after")
    def _consistent(self) -> ResnetOptions:
        if self.width % self.groups:
            raise ValueError(f"width {self.width} is not divisible by groups {self.groups}: every GroupNorm needs groups of equal size")
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks {self.blocks} need at least one stage and one block in each")
        if self.front_blocks > sum(self.blocks):
            raise ValueError(f"front_blocks {self.front_blocks} are more than the {sum(self.blocks)} blocks of the network")
        return self


class BasicBlock(nn.Module):
    """ReLU(shortcut(x) + norm(conv(ReLU(norm(conv(x)))))); [B, c_in, H, W] -> [B, c_out, H/stride, W/stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.convolution1 = _convolution(channels_in, channels_out, 3, stride)
        self.norm1 = nn.GroupNorm(groups, channels_out)
        self.convolution2 = _convolution(channels_out, channels_out, 3, 1)
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(_convolution(channels_in, channels_out, 1, stride), nn.GroupNorm(groups, channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu(self.norm1(self.convolution1(x)))
        return nn.functional.relu(self.shortcut(x) + self.norm2(self.convolution2(hidden)))


def build_resnet(options: ResnetOptions, data: DataSpecification, name: str) -> SplitModel:
    """Build the model with torch's global generator; the caller seeds it. The stem is 3x3 without pooling, as for 32x32 images.

    Raises:
        ValueError: the data specification is not [channels, height, width].

    """
    if len(data.input_shape) != 3:
        raise ValueError(
            f"model 'resnet' needs samples of shape channels x height x width, but the data specification says {list(data.input_shape)}"
        )
    stem = [_convolution(data.input_shape[0], options.width, 3, 1), nn.GroupNorm(options.groups, options.width), nn.ReLU()]
    blocks = _basic_blocks(options)
    front = nn.Sequential(*stem, *blocks[: options.front_blocks])
    with torch.no_grad():
        channels, height, width = front(torch.zeros(2, *data.input_shape)).shape[1:]
    head = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, data.num_classes))
    remaining = blocks[options.front_blocks :] if options.back is ResnetBack.RESNET else []
    channels_out = options.width << (len(options.blocks) - 1) if remaining else channels
    back = nn.Sequential(*remaining, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_out, data.num_classes))
    model = SplitModel(name, front, head, back, cross_entropy, data.input_shape, data.num_classes)
    with torch.no_grad():
        model.back(torch.zeros(2, channels, height, width))
    return model


def _basic_blocks(options: ResnetOptions) -> list[BasicBlock]:
    blocks: list[BasicBlock] = []
    channels = options.width
    for stage, count in enumerate(options.blocks):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(BasicBlock(channels, options.width << stage, stride, options.groups))
            channels = options.width << stage
    return blocks


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int) -> nn.Conv2d:
    """Return a convolution without bias, which the norm behind it would shift away, drawn as in He et al. 2015."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
