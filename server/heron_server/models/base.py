"""Frozen weights of the client's part: which they are, how they are stored, and the blob that devices download once and map read-only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from heron_common.files.atomic import replace_atomically
from heron_common.numerics.base_layout import base_layout
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.specification.model_spec import BlobReference
from heron_server.models.batch_norm import moving_layers

LARGE_BUFFER = 1024
"""Buffers of more numbers are stored beside frozen weights; smaller ones stand in the programs as constants."""


class BaseStorage(StrEnum):
    """How frozen matrices are stored: float32, bfloat16, or int8 with a scale per row. Vectors stay float32: they are small and the model is sensitive to them."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


@dataclass(frozen=True)
class FrozenTensor:
    """A frozen tensor: its name, the values that the model computes with, and what is stored of it, one tensor per program input."""

    spec: TensorSpec
    value: torch.Tensor
    stored: tuple[torch.Tensor, ...]


def frozen_tensors(modules: Iterable[nn.Module], storage: BaseStorage) -> list[FrozenTensor]:
    """Return the frozen tensors of these modules, each once, however many modules share it."""
    found: dict[int, FrozenTensor] = {}
    for module in modules:
        for name, value in named_frozen(module):
            if id(value) not in found:
                stored = _stored(value.detach().cpu(), storage)
                dtype = {torch.int8: DType.INT8, torch.bfloat16: DType.BFLOAT16}.get(stored[0].dtype, DType.FLOAT32)
                found[id(value)] = FrozenTensor(TensorSpec(name, dtype, tuple(value.shape) or (1,)), value, stored)
    return list(found.values())


def named_frozen(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the names and tensors that are frozen: parameters without a gradient, and large buffers but those that a batch normalisation moves."""
    parameters: list[tuple[str, torch.Tensor]] = [(n, p) for n, p in module.named_parameters() if not p.requires_grad]
    moving = {id(buffer) for layer in moving_layers(module).values() for buffer in layer.buffers()}
    large = [(n, b) for n, b in module.named_buffers() if b.numel() > LARGE_BUFFER and b.is_floating_point()]
    return parameters + [(n, b) for n, b in large if id(b) not in moving]


def round_to_storage(modules: Iterable[nn.Module], storage: BaseStorage) -> None:
    """Set every frozen tensor to what its stored form stands for, so that server, programs and export compute with the same values."""
    for frozen in frozen_tensors(modules, storage):
        with torch.no_grad():
            frozen.value.copy_(widened(frozen.stored))


def widened(stored: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the float32 tensor that a stored one stands for: s q by rows for int8."""
    if len(stored) == 2:
        values, scales = stored
        return values.to(torch.float32) * scales.reshape(-1, *[1] * (values.dim() - 1))
    return stored[0].to(torch.float32)


def write_base(tensors: list[FrozenTensor], folder: Path) -> BlobReference:
    """Write the blob of all frozen tensors into a folder, under its digest, and return its reference; the file appears whole or not at all.

    Raises:
        OSError: the disk refuses.

    """
    digest = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        for piece in _pieces(tensors):
            file.write(piece)
            digest.update(piece)

    written = folder / "base.new"
    replace_atomically(written, write)
    written.replace(folder / digest.hexdigest())
    return BlobReference(digest.hexdigest(), base_layout(tuple(frozen.spec for frozen in tensors)).total_bytes)


def base_digest(tensors: list[FrozenTensor]) -> str:
    """Return the digest that `write_base` names the blob of these tensors by."""
    digest = hashlib.sha256()
    for piece in _pieces(tensors):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(tensors: list[FrozenTensor]) -> Iterator[bytes | memoryview]:
    """Yield the blob's bytes in order: what fills the gaps, and each stored tensor."""
    layout = base_layout(tuple(frozen.spec for frozen in tensors))
    stored = [part for frozen in tensors for part in frozen.stored]
    end = 0
    for region, part in zip(layout.regions, stored, strict=True):
        yield bytes(region.offset - end)
        yield part.contiguous().reshape(-1).view(torch.uint8).numpy().data
        end = region.offset + region.size_bytes


def _stored(value: torch.Tensor, storage: BaseStorage) -> tuple[torch.Tensor, ...]:
    if value.dim() < 2 or storage is BaseStorage.FLOAT32:
        return (value.float(),)
    if storage is BaseStorage.BFLOAT16:
        return (value.to(torch.bfloat16),)
    rows = value.float().flatten(1)
    # A row of zeros has any scale.
    scales = (rows.abs().amax(1) / 127.0).clamp_min(1e-12)
    quantised = torch.round(rows / scales[:, None]).clamp(-127, 127).to(torch.int8)
    return quantised.reshape(value.shape), scales
