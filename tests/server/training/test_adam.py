"""Adam with few calls: bit for bit torch's, whatever the tensors, their decay, and which of them had a gradient."""

from __future__ import annotations

import copy

import pytest
import torch

from heron_server.training import adam
from heron_server.training.adam import SmallAdam

SHAPES = ((16, 2, 3, 3), (7,), (33, 5), (10, 128), (1,), ())
RATE = 2e-3


def _parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def _groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": parameters[:4]}, {"params": parameters[4:], "lr": RATE / 3}]


def _set_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    """Of very different sizes, and in every third step none for one of them."""
    generator = torch.Generator().manual_seed(step)
    for index, parameter in enumerate(parameters):
        size = 10.0 ** int(torch.randint(-7, 4, (), generator=generator))
        gradient = size * torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if step % 3 == 2 and index == step % len(SHAPES) else gradient


@pytest.mark.parametrize(("decay", "decoupled"), [(0.0, False), (0.01, False), (0.01, True)], ids=["adam", "adam with decay", "adamw"])
@pytest.mark.parametrize("most_weights", [1 << 18, 100], ids=["small", "large"])
def test_steps_and_moments_are_torchs_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, decay: float, decoupled: bool, most_weights: int
) -> None:
    monkeypatch.setattr(adam, "_MOST_WEIGHTS", most_weights)
    ours, theirs = _parameters(), _parameters()
    mine = SmallAdam(_groups(ours), RATE, weight_decay=decay, decoupled_weight_decay=decoupled)
    torchs = (torch.optim.AdamW if decoupled else torch.optim.Adam)(_groups(theirs), RATE, weight_decay=decay)
    for step in range(60):
        _set_gradients(ours, step)
        _set_gradients(theirs, step)
        mine.step()
        torchs.step()
        if step == 30:
            # Moments of either are the other's.
            kept = copy.deepcopy(mine.state_dict())
            mine.load_state_dict(torchs.state_dict())
            torchs.load_state_dict(kept)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    found, expected = mine.state_dict()["state"], torchs.state_dict()["state"]
    assert found.keys() == expected.keys() and found
    for index, moments in expected.items():
        assert found[index].keys() == moments.keys()
        assert all(torch.equal(found[index][name], value) for name, value in moments.items())


def test_a_group_without_any_gradient_rests() -> None:
    parameters = _parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    optimiser = SmallAdam(parameters, RATE)
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    assert not optimiser.state_dict()["state"]
