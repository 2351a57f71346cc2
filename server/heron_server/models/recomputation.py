"""Blocks that keep their input alone and run again for their gradients: of a chain of them one at a time holds what its backward pass needs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


class Chain(nn.Module):
    """Blocks in a row, each a function of what the one before returns, and of arguments that no gradient goes to."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def recomputed_blocks(*parts: nn.Module) -> list[nn.Module]:
    """Return the blocks that run again for their gradients, of parts that a sample passes in this order: all but the last, whose turn comes at once."""
    chains = [module for part in parts for module in part.modules() if isinstance(module, Chain)]
    return [layer for chain in chains for layer in chain.layers][:-1]


@contextmanager
def recomputing(*parts: nn.Module) -> Iterator[None]:
    """Let these blocks keep their input alone and run again for their gradients; what is hooked to a block sees its output as ever."""
    blocks = recomputed_blocks(*parts)
    for block in blocks:
        block.forward = functools.partial(_recomputed, _Bare(block))
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def after(value: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Return the value, to be had once the others are known.

    A runtime that orders operations by what needs them, as ONNX Runtime does, would else run blocks again before their gradients are asked for, or put
    off the gradients of weights, and keep all that these need. Nothing exceeds infinity, so that zero is added whatever the others are.
    """
    for other in others:
        value = value + (other.flatten()[:1] > torch.inf).to(value.dtype)
    return value


class _Bare(nn.Module):
    """A block without its hooks, which belong to the first of its passes alone."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self._run = block.forward

    def forward(self, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
        result = self._run(x, **arguments)
        output: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return output


def _recomputed(bare: _Bare, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
    # Both passes take the tensors that stand in the block now: by the second one it has its own back.
    present = dict([*bare.named_parameters(remove_duplicate=False), *bare.named_buffers(remove_duplicate=False)])

    def run(x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = functional_call(bare, dict(zip(present, tensors, strict=True)), (x,), arguments, tie_weights=False)
        return output

    output: torch.Tensor = _Recomputed.apply(run, x, *present.values())  # type: ignore[no-untyped-call]
    return output


class _Recomputed(torch.autograd.Function):
    """run(x, *tensors), of which nothing is kept but x and the tensors; d/dx and d/dtensors by running again (arXiv 1604.06174)."""

    @staticmethod
    def forward(ctx: Any, run: Any, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.run = run
        ctx.save_for_backward(x, *tensors)
        output: torch.Tensor = run(x, *tensors)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        x, *tensors = ctx.saved_tensors
        with torch.enable_grad():
            inputs = [value.detach().requires_grad_(needed) for value, needed in zip((after(x, gradient), *tensors), wanted, strict=True)]
            asked = [value for value, needed in zip(inputs, wanted, strict=True) if needed]
            found = torch.autograd.grad(ctx.run(*inputs), asked, gradient, allow_unused=True)
        gradients = iter(found)
        for_x, *for_tensors = (next(gradients) if needed else None for needed in wanted)
        if for_x is not None:
            for_x = after(for_x, *(g for g in for_tensors if g is not None))
        return None, for_x, *for_tensors
