"""Which weights of a front move: all, its norms, its last layer, or those whose names match; the others are frozen, as an adapter's base is."""

from __future__ import annotations

import dataclasses
import re
import warnings

from torch import nn

from heron_common.errors import ConfigurationError
from heron_server.models.split_model import SplitModel, trained_parameters

ALL, NORMS, LAST, NORMS_AND_LAST = "all", "norms", "last", "norms+last"

FORMS = f"{ALL}, {NORMS}, {NORMS_AND_LAST}, {LAST}, or a regular expression that names of weights match from their beginning"


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


def with_train_weights(model: SplitModel, chosen: str) -> SplitModel:
    """Freeze the weights of the front that are not chosen, and return the model under a name of its own.

    Norms are the weights and biases of normalisations; the last layer is the last that has weights and is no normalisation, with the norms behind it. What
    the model keeps frozen stays so.

    Raises:
        ConfigurationError: nothing that trains is chosen.

    """
    if chosen == ALL:
        return model
    trained = trained_parameters(model.front)
    names = _chosen(model.front, [name for name, _ in trained], chosen)
    if not names:
        raise ConfigurationError(_nothing(model.front, [name for name, _ in trained], chosen))
    for name, parameter in trained:
        parameter.requires_grad_(name in names)
    return dataclasses.replace(model, name=f"{model.name}:train={chosen}")


def _chosen(front: nn.Module, trained: list[str], chosen: str) -> set[str]:
    if chosen not in (NORMS, LAST, NORMS_AND_LAST):
        return {name for name in trained if re.match(chosen, name)}
    norms = {name for name in trained if is_norm(front.get_submodule(name.rpartition(".")[0]))}
    others = [name for name in trained if name not in norms]
    last: set[str] = set()
    if others:
        layer = others[-1].rpartition(".")[0]
        begins = min(index for index, name in enumerate(trained) if name.rpartition(".")[0] == layer)
        last = set(trained[begins:])
    return {NORMS: norms, LAST: last, NORMS_AND_LAST: norms | last}[chosen]


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises: torch's own are known, others are told by their names, as LlamaRMSNorm is."""
    known = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return isinstance(layer, known) or type(layer).__name__.lower().endswith("norm")


def _nothing(front: nn.Module, trained: list[str], chosen: str) -> str:
    frozen = [name for name, parameter in front.named_parameters() if not parameter.requires_grad]
    matched = _chosen(front, frozen, chosen)
    shown = ", ".join(trained[:6]) + (", ..." if len(trained) > 6 else "")
    why = f"matches only weights that the model keeps frozen, like {min(matched)}" if matched else "matches no weight of the front"
    return f"train_weights '{chosen}' {why}: its weights that train are {shown or 'none'}; give {FORMS}"
