"""Heads within a front, and blocks between which no gradient passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class BlockHeads(nn.Module):
    """A front's head, and beside it one for each inner place that a local loss is at.

    Attributes:
        final: the head at the cut; what calls this module as a head calls it.
        inner: heads at the inner places, in the order of the front.
        places: names of the front's submodules behind which these are.

    """

    def __init__(self, final: nn.Module, inner: list[nn.Module], places: tuple[str, ...]) -> None:
        super().__init__()
        self.final, self.inner, self.places = final, nn.ModuleList(inner), places

    def forward(self, *arguments: torch.Tensor) -> Any:
        return self.final(*arguments)


@contextmanager
def blocks_apart(front: nn.Module, places: tuple[str, ...]) -> Iterator[list[torch.Tensor]]:
    """Let no gradient pass from behind these submodules to what comes after; yields their outputs, as they are computed, with their gradients."""
    found: list[torch.Tensor] = []

    def part(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        found.append(output)
        return output.detach()

    hooks = [front.get_submodule(place).register_forward_hook(part) for place in places]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
