"""ResNet-18, -34 and -50 (He et al. 2015): the stem and the first blocks are the front, the other blocks the back."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from heron_common.specification.data_specification import DataSpecification
from heron_server.models.batch_norm import FrozenBatchNorm2d
from heron_server.models.families.family_options import FamilyOptions
from heron_server.models.families.resnet_blocks import BasicBlock, Bottleneck, MakeNorm, convolution
from heron_server.models.head import auxiliary_head
from heron_server.models.split_model import SplitModel, sample_losses_of

_BLOCKS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResnetBack(StrEnum):
    """What stands behind the cut: the other blocks of the network, or only its classifier, for runs that measure clients."""

    RESNET = "resnet"
    LINEAR = "linear"


class ResnetStem(StrEnum):
    """How an image enters: a 3x3 convolution for images of about 32x32, or 7x7 with stride 2 and a pooling for 224x224."""

    CIFAR = "cifar"
    IMAGENET = "imagenet"


class ResnetNorm(StrEnum):
    """What normalises: groups of a sample's channels, the batch as in the paper, or constants that trained weights brought with them (FrozenBatchNorm2d)."""

    GROUP = "group"
    BATCH = "batch"
    BATCH_FROZEN = "batch-frozen"


class ResnetOptions(FamilyOptions):
    """Options of the model family `resnet`."""

    width: int = Field(64, description="channels of the stem and the first stage; each later stage doubles them", ge=1)
    groups: int = Field(8, description="groups of every GroupNorm, a divisor of width", ge=1)
    depth: int = Field(
        18, description="18, 34 or 50: kind and number of blocks; from 50 on they are bottlenecks, four times as wide behind"
    )
    stem: ResnetStem = Field(
        ResnetStem.CIFAR, description="cifar: 3x3 without pooling; imagenet: 7x7 with stride 2, then a 3x3 max pooling"
    )
    norm: ResnetNorm = Field(
        ResnetNorm.GROUP,
        description="group: GroupNorm; batch: batch normalisation by the whole batch, with running statistics that clients average beside the weights; a "
        "device then holds a whole batch's activations at once (batch 256 of the default front: 270 MB, not 80), since neither micro-batches nor direction "
        "groups can split it; batch-frozen: batch normalisation with constant "
        "statistics, a mere scale and shift in new weights",
    )
    blocks: tuple[int, ...] = Field(
        (2, 2, 2, 2), description="blocks of each stage (default: those of the depth); stages after the first halve height and width"
    )
    front_blocks: int = Field(
        1, description="blocks that go to the client after the stem; --cut stem, layer1 or layer2.0 says it by name", ge=0
    )
    back: ResnetBack = Field(ResnetBack.RESNET, description="resnet: the other blocks and the classifier; linear: the classifier alone")

    @field_validator("depth")
    @classmethod
    def _depth_exists(cls, value: int) -> int:
        if value not in _BLOCKS:
            raise ValueError(f"depth is one of {', '.join(map(str, _BLOCKS))}, not {value}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _blocks_of_the_depth(cls, values: dict[str, object]) -> dict[str, object]:
        depth = str(values.get("depth"))
        if "blocks" not in values and depth.isdigit() and int(depth) in _BLOCKS:
            return {**values, "blocks": _BLOCKS[int(depth)][1]}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ResnetOptions:
        if self.width % self.groups:
            raise ValueError(f"width {self.width} is not divisible by groups {self.groups}: every GroupNorm needs groups of equal size")
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks {self.blocks} need at least one stage and one block in each")
        if self.front_blocks > sum(self.blocks):
            raise ValueError(f"front_blocks {self.front_blocks} are more than the {sum(self.blocks)} blocks of the network")
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """`stem`, then every block as layer1.0, layer1.1, ...; the last of a stage by the stage's name."""
        names = ["stem"]
        for stage, count in enumerate(self.blocks, 1):
            names += [f"layer{stage}.{index}" for index in range(count - 1)] + [f"layer{stage}"]
        return tuple(names)

    def cut_at(self, place: str) -> Self:
        names = {name: index for index, name in enumerate(self.places)}
        names |= {f"layer{stage}.{count - 1}": names[f"layer{stage}"] for stage, count in enumerate(self.blocks, 1)}
        if place not in names:
            raise ValueError(f"it has no place {place!r}: --cut can be {', '.join(self.places)}")
        if "front_blocks" in self.model_fields_set and self.front_blocks != names[place]:
            raise ValueError(
                f"--cut {place} means front_blocks={names[place]}, but front_blocks={self.front_blocks} was given: give one of them"
            )
        return self.model_copy(update={"front_blocks": names[place]})


def build_resnet(options: ResnetOptions, data: DataSpecification, name: str) -> SplitModel:
    """Build the model with torch's global generator; the caller seeds it.

    Raises:
        ValueError: the data specification is not [channels, height, width].

    """
    if len(data.input_shape) != 3:
        raise ValueError(
            f"model 'resnet' needs samples of shape channels x height x width, but the data specification says {list(data.input_shape)}"
        )
    stem = _stem(options, data.input_shape[0])
    blocks = _blocks(options)
    # In evaluation mode: the samples that tell shapes must move no statistics.
    front = nn.Sequential(*stem, *blocks[: options.front_blocks]).eval()
    with torch.no_grad():
        channels, height, width = front(torch.zeros(2, *data.input_shape)).shape[1:]
    head = _head(options, (channels, height, width), data.num_classes)
    remaining = blocks[options.front_blocks :] if options.back is ResnetBack.RESNET else []
    channels_out = _channels_out(options, len(options.blocks) - 1) if remaining else channels
    back = nn.Sequential(*remaining, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_out, data.num_classes))
    by_batch = options.norm is ResnetNorm.BATCH
    losses = sample_losses_of(data.task)
    model = SplitModel(
        name,
        front,
        auxiliary_head=head,
        back=back.eval(),
        sample_losses=losses,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        task=data.task,
        batch_statistics=by_batch,
    )
    with torch.no_grad():
        model.back(torch.zeros(2, channels, height, width))
    return model


def _stem(options: ResnetOptions, channels: int) -> list[nn.Module]:
    norm = _norm(options)
    if options.stem is ResnetStem.CIFAR:
        return [convolution(channels, options.width, kernel=3, stride=1), norm(options.width), nn.ReLU()]
    return [convolution(channels, options.width, kernel=7, stride=2), norm(options.width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]


def _blocks(options: ResnetOptions) -> list[nn.Module]:
    kind, _ = _BLOCKS[options.depth]
    blocks: list[nn.Module] = []
    channels = options.width
    for stage, count in enumerate(options.blocks):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(kind(channels, options.width << stage, stride=stride, norm=_norm(options)))
            channels = _channels_out(options, stage)
    return blocks


def _channels_out(options: ResnetOptions, stage: int) -> int:
    return (options.width << stage) * _BLOCKS[options.depth][0].expansion


def _norm(options: ResnetOptions) -> MakeNorm:
    if options.norm is ResnetNorm.BATCH_FROZEN:
        return lambda channels: FrozenBatchNorm2d(channels).eval()
    if options.norm is ResnetNorm.BATCH:
        return nn.BatchNorm2d
    return lambda channels: nn.GroupNorm(options.groups, channels)


def _head(options: ResnetOptions, cut: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return a linear head on all places of a small image; on a large one that would be the largest part of the client."""
    if options.stem is ResnetStem.IMAGENET:
        return auxiliary_head(cut, num_classes)
    return nn.Sequential(nn.Flatten(), nn.Linear(cut[0] * cut[1] * cut[2], num_classes))
