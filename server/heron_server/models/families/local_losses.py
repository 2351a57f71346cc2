"""Local losses within a front: behind which of its blocks they are, and the heads there."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from heron_common.algorithm.algorithm import LocalLosses
from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import Task
from heron_server.models.block_heads import BlockHeads, blocks_apart
from heron_server.models.blocks import check_blocks, found_blocks
from heron_server.models.head import auxiliary_head
from heron_server.models.split_model import SplitModel, device_of
from heron_server.models.transformer.token_head import token_head


def with_block_heads(model: SplitModel, losses: LocalLosses, *, blocks: tuple[str, ...], seed: int) -> SplitModel:
    """Return the model with heads behind blocks of its front, under a name of its own; `blocks` names these, or none to find them.

    Raises:
        ConfigurationError: the front has no such blocks, or none that can be found; or the task has no small head.

    """
    if losses is LocalLosses.END:
        if blocks:
            raise ConfigurationError(
                f"blocks {','.join(blocks)} are for local losses within the front, but local_losses is end: set it to blocks, leave blocks out, or let "
                "train_weights speak of the last block"
            )
        return model
    if model.task is Task.NEXT_TOKEN:
        raise ConfigurationError(
            f"local_losses={losses.value} needs a small head behind every block, and for the next token there is none: set local_losses to end, or "
            "choose preset cse-fsl"
        )
    places = _inner_places(model, losses, blocks)
    outputs = _outputs_at(model, places)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inner = [_head(model, tuple(h.shape[1:])).to(h.device) for h in outputs]
        except ValueError as exc:
            raise ConfigurationError(f"no head fits behind the blocks {', '.join(places)}: {exc}") from exc
    name = f"{model.name}:losses={','.join(places)}"
    return dataclasses.replace(model, name=name, auxiliary_head=BlockHeads(model.auxiliary_head, inner, places))


def _head(model: SplitModel, shape: tuple[int, ...]) -> nn.Module:
    if model.tokens:
        return token_head(shape, model.input_shape[0], task=model.task, num_classes=model.num_classes)
    return auxiliary_head(shape, model.num_classes)


def _outputs_at(model: SplitModel, places: tuple[str, ...]) -> list[torch.Tensor]:
    """Return what comes out behind these submodules, of two samples.

    Raises:
        ConfigurationError: one of them is not called once in the front, in this order, or does not return one tensor.

    """
    shapes: list[str] = []

    def note(place: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            shapes.append(place if isinstance(output, torch.Tensor) else f"{place} (which returns {type(output).__name__})")

        return hook

    hooks = [model.front.get_submodule(place).register_forward_hook(note(place)) for place in places]
    try:
        with torch.no_grad(), blocks_apart(model.front, places) as outputs:
            model.front(model.example(2).to(device_of(model.front)))
    except AttributeError as exc:
        raise ConfigurationError(
            f"a block behind which a loss is returns one tensor, which is not so of {', '.join(shapes[-1:])}: name others in blocks"
        ) from exc
    finally:
        for hook in hooks:
            hook.remove()
    if shapes != list(places):
        raise ConfigurationError(
            f"blocks are submodules that the front calls once each, in order: {', '.join(places)} were given, {', '.join(shapes) or 'none of them'} called"
        )
    return outputs


def _inner_places(model: SplitModel, losses: LocalLosses, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the blocks that are named, or of those that are found all or every second one but the last, which ends at the cut."""
    if blocks:
        check_blocks(model.front, blocks)
        return blocks
    found, each = found_blocks(model.front), 2 if losses is LocalLosses.PAIRS else 1
    if len(found) <= each:
        raise ConfigurationError(
            f"the front has {len(found)} blocks, too few for a loss within it with local_losses={losses.value}: choose a deeper cut, name its places in "
            "blocks, or set local_losses to end"
        )
    return tuple(found[-1 - each :: -each][::-1])
