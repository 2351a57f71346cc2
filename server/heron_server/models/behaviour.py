"""What a user's model makes of a few fixed samples before it is trained: by that a changed behaviour is noticed wherever its code lies."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from heron_server.models.copies import copied, generators_kept
from heron_server.models.source_digest import comparable
from heron_server.models.split_model import SplitModel, predict

_SAMPLES = 4

_NUMBERS = 64
"""Of each tensor so many are kept, from all over it: they stand in a run's record."""

_TOLERANCE = 1e-3
"""Of the largest number: another processor or version of torch rounds otherwise."""

Behaviour = Mapping[str, list[float]]
"""Numbers by what they are of."""

_WEIGHTS = "weights"


def behaviour(model: SplitModel) -> Behaviour:
    """Return activations, outputs in evaluation and training mode, and the lengths of gradients, for the present weights; empty for models of HERON's own."""
    if not model.code_digest:
        return {}
    front, back = copied(model.front), copied(model.back)
    x = model.example(_SAMPLES)
    found = {}
    with generators_kept(seed=0), torch.enable_grad():
        z = front.eval()(x)
        found["activations"] = z
        found["outputs"] = predict(back.eval(), z, model.mask(x))
        found["outputs in training"] = predict(back.train(), z, model.mask(x))
    trained = [parameter for part in (front, back) for parameter in part.parameters() if parameter.requires_grad]
    weights = torch.linspace(-1, 1, found["outputs in training"].numel()).view_as(found["outputs in training"])
    gradients = torch.autograd.grad((found["outputs in training"] * weights).sum(), trained, allow_unused=True)
    held = [value for part in (front, back) for value in part.state_dict().values()]
    # A weight without a gradient is told from one whose gradient is zero.
    found["gradients"] = torch.stack([torch.tensor(-1.0) if g is None else g.norm() for g in gradients])
    found[_WEIGHTS] = torch.stack([value.float().norm() for value in held])
    return {name: _some(value) for name, value in found.items()}


def computes_otherwise(code: str, then: Behaviour, model: SplitModel) -> bool:
    """Return whether a model whose digest was `code`, and which did what `then` says, is another one by now; its present weights are to be its first."""
    changed = comparable(code, model.code_digest) and code != model.code_digest
    return changed or behaves_otherwise(then, behaviour(model))


def behaves_otherwise(then: Behaviour, now: Behaviour) -> bool:
    """Return whether a model computes something else than it did; where its first weights are others already, nobody can say."""
    if not then or not now or not _alike(then.get(_WEIGHTS), now.get(_WEIGHTS)):
        return False
    return not all(_alike(then.get(name), values) for name, values in now.items())


def _some(value: torch.Tensor) -> list[float]:
    flat = torch.nan_to_num(value.detach().float().flatten())
    places = torch.linspace(0, flat.numel() - 1, min(flat.numel(), _NUMBERS)).round().long()
    numbers: list[float] = flat[places].tolist()
    return numbers


def _alike(one: list[float] | None, other: list[float] | None) -> bool:
    if one is None or other is None or len(one) != len(other):
        return False
    largest = max((abs(number) for number in (*one, *other)), default=0.0)
    return all(abs(a - b) <= _TOLERANCE * largest for a, b in zip(one, other, strict=True))
