"""Which weights of a front move, and which of them by exact gradients: all, its norms, its last block, or those whose names match; the others are frozen."""

from __future__ import annotations

import dataclasses
import re
import warnings

from torch import nn

from heron_common.algorithm.algorithm import NO_WEIGHTS
from heron_common.errors import ConfigurationError
from heron_server.models.blocks import last_block
from heron_server.models.split_model import SplitModel, trained_parameters

ALL, NORMS, LAST, NORMS_AND_LAST = "all", "norms", "last", "norms+last"

LAST_BLOCK, NORMS_AND_LAST_BLOCK = "last-block", "norms+last-block"

FORMS = (
    f"{ALL}, {NORMS}, {LAST_BLOCK}, {NORMS_AND_LAST_BLOCK}, {LAST}, {NORMS_AND_LAST}, "
    "or a regular expression that names of weights match from their beginning"
)

_OF_BLOCKS = (LAST_BLOCK, NORMS_AND_LAST_BLOCK)
_WORDS = (NORMS, LAST, NORMS_AND_LAST, *_OF_BLOCKS)


def check_train_weights(chosen: str) -> None:
    """Refuse what is neither a word for a choice nor a regular expression.

    Raises:
        ConfigurationError: it is neither.

    """
    try:
        with warnings.catch_warnings():
            # What Python warns of will mean something else one day.
            warnings.simplefilter("error")
            re.compile(chosen)
    except (re.error, FutureWarning, RecursionError, OverflowError) as exc:
        raise ConfigurationError(f"{chosen!r} is no regular expression ({exc}): give {FORMS}") from exc


def speaks_of_blocks(*choices: str) -> bool:
    """Whether one of these choices needs to know where the front's last block begins."""
    return any(chosen in _OF_BLOCKS for chosen in choices)


def with_train_weights(model: SplitModel, chosen: str, *, exact: str = NO_WEIGHTS, blocks: tuple[str, ...] = ()) -> SplitModel:
    """Freeze the weights of the front that are not chosen, set apart those that move by exact gradients, and return the model under a name of its own.

    Norms are the weights and biases of normalisations; the last layer is the last that has weights and is no normalisation, with the norms behind it; the
    last block is the last that is found, or what is behind the last of `blocks`. What the model keeps frozen stays so.

    Raises:
        ConfigurationError: nothing that trains is chosen, or with `exact` nothing is left to differences, or something behind the exact weights.

    """
    trained = [name for name, _ in trained_parameters(model.front)]
    of_block = set(last_block(model.front, blocks)) if speaks_of_blocks(chosen, exact) else set()
    moving = _chosen(model.front, trained, chosen, of_block)
    exactly = set() if exact == NO_WEIGHTS else _chosen(model.front, trained, exact, of_block)
    if not moving:
        raise ConfigurationError(_nothing(model.front, trained, chosen, of_block))
    if exact != NO_WEIGHTS:
        model = _with_exact(model, [name for name in trained if name in moving], exactly, said=f"exact_weights={exact}", among=chosen)
    for name, parameter in trained_parameters(model.front):
        parameter.requires_grad_(name in moving)
    return model if chosen == ALL else dataclasses.replace(model, name=f"{model.name}:train={chosen}{_places(blocks, of_block)}")


def _with_exact(model: SplitModel, moving: list[str], exactly: set[str], *, said: str, among: str) -> SplitModel:
    by_gradients = [name in exactly for name in moving]
    if not any(by_gradients):
        shown = ", ".join(moving[:6]) + (", ..." if len(moving) > 6 else "")
        raise ConfigurationError(f"{said} are none of the weights that train_weights={among} moves, which are {shown}: give {FORMS}")
    if all(by_gradients):
        raise ConfigurationError(
            f"{said} are all that train_weights={among} moves here, so that estimator=hybrid has no differences to take: set train_weights to all, name an "
            "earlier block in blocks, or choose preset last-exact"
        )
    begins = by_gradients.index(True)
    if not all(by_gradients[begins:]):
        left = moving[begins:][by_gradients[begins:].index(False)]
        raise ConfigurationError(
            f"{said} leave {left!r}, which is behind them and which train_weights={among} moves, to differences: choose the last weights of the front, like {LAST_BLOCK}"
        )
    return dataclasses.replace(model, name=f"{model.name}:differences={begins}", without_gradient=begins)


def _places(blocks: tuple[str, ...], of_block: set[str]) -> str:
    return f" behind {blocks[-1]}" if blocks and of_block else ""


def _chosen(front: nn.Module, trained: list[str], chosen: str, of_block: set[str]) -> set[str]:
    if chosen == ALL:
        return set(trained)
    if chosen not in _WORDS:
        return {name for name in trained if re.match(chosen, name)}
    norms = {name for name in trained if is_norm(front.get_submodule(name.rpartition(".")[0]))}
    last = of_block & set(trained) if chosen in _OF_BLOCKS else _last_layer(trained, norms)
    return norms if chosen == NORMS else last if chosen in (LAST, LAST_BLOCK) else norms | last


def _last_layer(trained: list[str], norms: set[str]) -> set[str]:
    others = [name for name in trained if name not in norms]
    if not others:
        return set()
    layer = others[-1].rpartition(".")[0]
    begins = min(index for index, name in enumerate(trained) if name.rpartition(".")[0] == layer)
    return set(trained[begins:])


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises: torch's own are known, others are told by their names, as LlamaRMSNorm is."""
    known = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return isinstance(layer, known) or type(layer).__name__.lower().endswith("norm")


def _nothing(front: nn.Module, trained: list[str], chosen: str, of_block: set[str]) -> str:
    frozen = [name for name, parameter in front.named_parameters() if not parameter.requires_grad]
    matched = _chosen(front, frozen, chosen, of_block)
    shown = ", ".join(trained[:6]) + (", ..." if len(trained) > 6 else "")
    why = f"matches only weights that the model keeps frozen, like {min(matched)}" if matched else "matches no weight of the front"
    return f"train_weights '{chosen}' {why}: its weights that train are {shown or 'none'}; give {FORMS}"
