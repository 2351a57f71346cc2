"""Auxiliary heads of a user's model of tokens: activations and the mask of tokens -> what the loss takes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from heron_common.specification.data_specification import Task
from heron_server.models.head import auxiliary_head
from heron_server.models.transformer.transformer_families import PooledClassifier


class NextTokenHead(nn.Module):
    """z [B, T, D] -> z and an unembedding [V, D], of which logits are the product: the loss takes it in blocks, so that they are never whole."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.unembedding = nn.Parameter(torch.empty(vocabulary_size, width))
        nn.init.normal_(self.unembedding, std=width**-0.5)

    def forward(self, z: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z, self.unembedding


class Unmasked(nn.Module):
    """A head that wants no mask, or wants it by one of the names that a user's module may have for it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        parameters = list(inspect.signature(inner.forward).parameters)[1:]
        self.mask_argument = next((name for name in ("mask", "attention_mask") if name in parameters), None)

    def forward(self, z: torch.Tensor, mask: torch.Tensor) -> Any:
        if self.mask_argument is None:
            return self.inner(z)
        return self.inner(z, **{self.mask_argument: mask.to(torch.int64) if self.mask_argument == "attention_mask" else mask})


def token_head(cut: tuple[int, ...], length: int, *, task: Task, num_classes: int) -> nn.Module:
    """Return a head for activations of this shape per sample: [T, D] for next tokens; that, or any other that a head of numbers takes, otherwise.

    Raises:
        ValueError: the shape is none of these.

    """
    has_places = len(cut) == 2 and cut[0] == length
    if task is Task.NEXT_TOKEN:
        if not has_places:
            raise ValueError(
                f"the next token is asked for at each of {length} places, but the activations of a sample have shape {'x'.join(map(str, cut))}: "
                "cut where they are places x width, or give your own head with head=python:MODULE:CALLABLE"
            )
        return NextTokenHead(cut[1], num_classes)
    return PooledClassifier(cut[1], num_classes) if has_places else Unmasked(auxiliary_head(cut, num_classes))
