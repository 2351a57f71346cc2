"""A small GroupNorm CNN whose widths, strides and kernel are options: its front can be wide, narrow or deep."""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from heron_common.specification.data_specification import DataSpecification
from heron_server.models.families.family_options import FamilyOptions
from heron_server.models.split_model import SplitModel, sample_losses_of


class CnnOptions(FamilyOptions):
    """Options of the model family `cnn`."""

    front_widths: tuple[int, ...] = Field((4, 2), description="channels of each 3x3 convolution of the front; the last is the cut's width")
    front_strides: tuple[int, ...] = Field((1, 2), description="stride of each convolution of the front")
    kernel: int = Field(3, description="kernel size of the front's convolutions, odd", ge=1)
    back_widths: tuple[int, ...] = Field((), description="channels of each 3x3 convolution of the back; none by default")
    hidden: int = Field(128, description="width of the back's hidden layer", ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> CnnOptions:
        if not self.front_widths or len(self.front_widths) != len(self.front_strides):
            raise ValueError(f"front_widths {self.front_widths} and front_strides {self.front_strides} need one entry per convolution each")
        if min(*self.front_widths, *self.front_strides, *self.back_widths, 1) < 1 or self.kernel % 2 == 0:
            raise ValueError("widths and strides are at least 1 and the kernel is odd")
        return self

    def cut_at(self, place: str) -> Self:
        raise ValueError(
            f"its cut has no names like {place!r}, it lies behind the convolutions of front_widths: leave --cut out and change those"
        )


class ConvolutionBlock(nn.Sequential):
    """Convolution, GroupNorm over all channels of a sample, ReLU; [B, c_in, H, W] -> [B, c_out, H/stride, W/stride]."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2), nn.GroupNorm(1, channels_out), nn.ReLU()
        )


def build_cnn(options: CnnOptions, data: DataSpecification, name: str) -> SplitModel:
    """Build the model with torch's global generator; the caller seeds it.

    Raises:
        ValueError: the data specification is not [channels, height, width].

    """
    if len(data.input_shape) != 3:
        raise ValueError(
            f"model 'cnn' needs samples of shape channels x height x width, but the data specification says {list(data.input_shape)}"
        )
    channels, height, width = data.input_shape
    front: list[nn.Module] = []
    for out, stride in zip(options.front_widths, options.front_strides, strict=True):
        front.append(ConvolutionBlock(channels, out, kernel=options.kernel, stride=stride))
        channels, height, width = out, math.ceil(height / stride), math.ceil(width / stride)
    features = channels * height * width
    head = nn.Sequential(nn.Flatten(), nn.Linear(features, data.num_classes))
    back: list[nn.Module] = []
    for out in options.back_widths:
        back.append(ConvolutionBlock(channels, out, kernel=3, stride=1))
        channels = out
    back += [nn.Flatten(), nn.Linear(channels * height * width, options.hidden), nn.ReLU(), nn.Linear(options.hidden, data.num_classes)]
    model = SplitModel(
        name,
        nn.Sequential(*front),
        auxiliary_head=head,
        back=nn.Sequential(*back),
        sample_losses=sample_losses_of(data.task),
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        task=data.task,
    )
    with torch.no_grad():
        model.back(model.front(torch.zeros(2, *data.input_shape)))
    return model
