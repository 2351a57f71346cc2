"""State that devices would never move: what a pass in training mode changes in a front or head besides its weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from heron_common.errors import ConfigurationError
from heron_server.models.copies import copied, generators_kept
from heron_server.models.split_model import SplitModel
from heron_server.models.user.reasons import reason_of
from heron_server.models.user.same_as_whole import InTurn
from heron_server.models.user.trace import same_values

_SAMPLES = 5


def refuse_moving_state(model: SplitModel) -> None:
    """Run copies of a user's front and head once in training mode, and refuse what moves: clients compute with what it was at the start, for ever.

    Batch normalisation is left to its own rules: it is frozen, federated or refused elsewhere. Counters may count.

    Raises:
        ConfigurationError: something moves; the sentence names it and says what to do.

    """
    if not model.code_digest:
        return
    sides = copied(InTurn(model.front, model.auxiliary_head)).eval()
    x = model.example(_SAMPLES)
    before, outputs = _held(sides), _outputs(sides, model, x)
    normalisation = {layer: copied(layer.state_dict()) for layer in sides.modules() if isinstance(layer, _BatchNorm)}
    sides.train()
    # Twice: what is kept by other means than buffers shows in what it does afterwards.
    for samples in (x, x.flip(0)):
        _outputs(sides, model, samples)
    for layer, statistics in normalisation.items():
        layer.load_state_dict(statistics)
    sides.eval()
    moved = [name for name, value in _held(sides).items() if name in before and not same_values(before[name], value)]
    if moved:
        part, _, name = moved[0].partition(".")
        where = "front" if part == "front" else "the auxiliary head"
        raise ConfigurationError(
            f"{name} in {where} moves while the model trains, and clients would never move it: cut before what moves it, or return that submodule "
            "after eval(), which keeps it as it is"
        )
    if not all(same_values(a, b) for a, b in zip(outputs, _outputs(sides, model, x), strict=True)):
        raise ConfigurationError(
            "the front or the auxiliary head computes something else once it has run in training mode, without any buffer that moves: it keeps values that "
            "clients would never have; keep them in buffers, and behind the cut"
        )


def _held(sides: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights and buffers but for counters and what batch normalisation moves."""
    named = {name: layer for name, layer in sides.named_modules() if isinstance(layer, _BatchNorm)}
    tensors = {**dict(sides.named_parameters()), **dict(sides.named_buffers())}
    return {
        name: value.detach().clone()
        for name, value in tensors.items()
        if name.rpartition(".")[0] not in named and (value.is_floating_point() or value.numel() > 1)
    }


def _outputs(sides: nn.Module, model: SplitModel, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    try:
        with torch.no_grad(), generators_kept(seed=0):
            outputs = sides(x, model.mask(x))
    except Exception as exc:
        mode = "training" if sides.training else "evaluation"
        raise ConfigurationError(f"the front and the auxiliary head were run in {mode} mode, but it {reason_of(exc)}") from exc
    return outputs if isinstance(outputs, tuple) else (outputs,)
