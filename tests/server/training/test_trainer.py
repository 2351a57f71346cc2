"""The server's first-order steps, against plain torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.errors import ConfigurationError
from heron_server.models.split_model import SplitModel, cross_entropy
from heron_server.training.trainer import Trainer, TrainerSettings, choose_device
from heron_server.training.uploads import DecodedUpload

RATE, DECAY = 0.05, 0.01


def settings(optimiser: str = "adam", **changes: Any) -> TrainerSettings:
    values = {
        "server_optimiser": optimiser,
        "server_learning_rate": RATE,
        "server_weight_decay": DECAY,
        "server_momentum": 0.9 if optimiser == "sgd" else 0.0,
        "device": "cpu",
        "precision": "fp32",
    }
    return TrainerSettings(**{**values, **changes})


def batch(seed: int, rows: int = 4) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((rows, 2, 2, 2)).astype(np.float32), generator.integers(0, 3, rows)


def plain_optimiser(name: str, module: torch.nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](module.parameters(), lr=RATE, weight_decay=DECAY)


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.tensors()


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype and torch.equal(value, b[name]), name


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("trains_head", [False, True])
def test_steps_are_those_of_plain_torch(tiny_model: SplitModel, name: str, trains_head: bool) -> None:
    twins = {"back": copy.deepcopy(tiny_model.back), "head": copy.deepcopy(tiny_model.auxiliary_head)}
    plain = {part: plain_optimiser(name, module) for part, module in twins.items()}
    front = copy.deepcopy(tiny_model.front.state_dict())
    trainer = Trainer(tiny_model, settings(name), trains_head=trains_head)
    for step in range(3):
        z, y = batch(step)
        expected = {}
        for part in ("back", "head") if trains_head else ("back",):
            plain[part].zero_grad()
            loss = torch.nn.functional.cross_entropy(twins[part](torch.from_numpy(z)), torch.from_numpy(y))
            loss.backward()
            plain[part].step()
            expected[part] = loss.item()
        losses = trainer.train(DecodedUpload(z, y))
        assert losses.server == pytest.approx(expected["back"], rel=1e-6)
        assert losses.head == (pytest.approx(expected["head"], rel=1e-6) if trains_head else None)
        assert not losses.skipped and trainer.server_version == step + 1
    for part, module in (("back", tiny_model.back), ("head", tiny_model.auxiliary_head)):
        for got, want in zip(module.parameters(), twins[part].parameters(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    for key, value in tiny_model.front.state_dict().items():
        assert torch.equal(value, front[key]), "the front is the clients'"


@pytest.mark.invariant(18)
def test_judging_is_plain_torch_and_changes_nothing(tiny_model: SplitModel) -> None:
    trainer = Trainer(tiny_model, settings(), trains_head=True)
    trainer.train(DecodedUpload(*batch(0)))
    before = state_of(trainer)
    (base, y), (probe, _), (other, _) = batch(1), batch(2), batch(3)
    judged = trainer.judge(DecodedUpload(np.concatenate([base, probe, other]), y))
    assert judged.shape == (3, 4) and judged.dtype == np.float32
    with torch.no_grad():
        for row, z in zip(judged, (base, probe, other), strict=True):
            want = torch.nn.functional.cross_entropy(tiny_model.back(torch.from_numpy(z)), torch.from_numpy(y), reduction="none")
            np.testing.assert_allclose(row, want.numpy(), rtol=1e-6)
    assert trainer.server_version == 1
    assert_same(state_of(trainer), before)


def test_judging_each_row_alone_gives_the_same_losses(tiny_model: SplitModel) -> None:
    trainer = Trainer(tiny_model, settings(), trains_head=False)
    z, y = batch(0)
    alone = [trainer.judge(DecodedUpload(z[i : i + 1], y[i : i + 1]))[0, 0] for i in range(len(y))]
    np.testing.assert_allclose(trainer.judge(DecodedUpload(z, y))[0], alone, rtol=1e-5)


@pytest.mark.invariant(24)
@pytest.mark.parametrize("poisoned", ["back", "head", "both"])
def test_a_loss_that_is_not_finite_moves_nothing(tiny_model: SplitModel, poisoned: str) -> None:
    trainer = Trainer(tiny_model, settings(), trains_head=True)
    trainer.train(DecodedUpload(*batch(0)))
    with torch.no_grad():
        for part, module in (("back", tiny_model.back), ("head", tiny_model.auxiliary_head)):
            if poisoned in (part, "both"):
                next(iter(module.parameters())).fill_(torch.inf)
    before = state_of(trainer)
    assert trainer.train(DecodedUpload(*batch(1))).skipped
    assert trainer.server_version == 1
    assert_same(state_of(trainer), before)


def test_training_goes_on_after_a_skipped_step(tiny_model: SplitModel) -> None:
    trainer = Trainer(tiny_model, settings(), trains_head=True)
    z, y = batch(0)
    assert trainer.train(DecodedUpload(np.full_like(z, np.inf), y)).skipped
    assert not trainer.train(DecodedUpload(z, y)).skipped
    assert all(torch.isfinite(value).all() for value in state_of(trainer).values())


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("trains_head", [False, True])
def test_a_restored_trainer_continues_bit_for_bit(tiny_model: SplitModel, name: str, trains_head: bool) -> None:
    other_model = copy.deepcopy(tiny_model)
    trainer = Trainer(tiny_model, settings(name), trains_head=trains_head)
    for step in range(3):
        trainer.train(DecodedUpload(*batch(step)))
    kept, version = trainer.tensors(), trainer.server_version
    restored = Trainer(other_model, settings(name), trains_head=trains_head)
    restored.train(DecodedUpload(*batch(99)))
    restored.load_tensors(kept, version)
    assert_same(state_of(restored), kept)
    for step in range(3, 6):
        one, other = trainer.train(DecodedUpload(*batch(step))), restored.train(DecodedUpload(*batch(step)))
        assert (one.losses.tolist(), one.head, one.skipped) == (other.losses.tolist(), other.head, other.skipped)
    assert restored.server_version == trainer.server_version
    assert_same(state_of(restored), state_of(trainer))


def test_going_back_to_before_the_first_step_forgets_the_optimisers_moments(tiny_model: SplitModel) -> None:
    trainer = Trainer(tiny_model, settings(), trains_head=True)
    start = trainer.tensors()
    trainer.train(DecodedUpload(*batch(0)))
    first = trainer.tensors()
    trainer.load_tensors(start, 0)
    assert_same(state_of(trainer), start)
    trainer.train(DecodedUpload(*batch(0)))
    assert_same(state_of(trainer), first)


def test_kept_tensors_are_copies(tiny_model: SplitModel) -> None:
    trainer = Trainer(tiny_model, settings(), trains_head=True)
    trainer.train(DecodedUpload(*batch(0)))
    kept = trainer.tensors()
    copies = {name: value.clone() for name, value in kept.items()}
    trainer.train(DecodedUpload(*batch(1)))
    assert_same(kept, copies)
    trainer.load_tensors(kept, 1)
    trainer.train(DecodedUpload(*batch(1)))
    assert_same(kept, copies)


def test_averaged_weights_are_taken_over(tiny_model: SplitModel) -> None:
    trainer = Trainer(tiny_model, settings(), trains_head=False)
    front, head = trainer.client_weights()
    trainer.set_client_weights(front + 1, None)
    assert all(np.array_equal(a, b) for a, b in zip(trainer.client_weights(), (front + 1, head), strict=True))
    trainer.set_client_weights(front, head + 2)
    assert all(np.array_equal(a, b) for a, b in zip(trainer.client_weights(), (front, head + 2), strict=True))


def test_bf16_steps_keep_float32_weights_and_learn(tiny_model: SplitModel) -> None:
    trainer = Trainer(tiny_model, settings(precision="bf16", server_weight_decay=0.0), trains_head=True)
    losses = [trainer.train(DecodedUpload(*batch(0))).server for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all(p.dtype is torch.float32 for p in tiny_model.back.parameters())


@pytest.mark.parametrize("name", ["cuda:99", "abacus", ""])
def test_a_device_that_is_not_here_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}'"):
        choose_device(name)


def test_auto_is_a_device_that_works() -> None:
    assert torch.ones(2, device=choose_device("auto")).sum() == 2


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_head_of_many_inputs_does_not_overshoot(name: str) -> None:
    torch.manual_seed(0)
    front, back = torch.nn.Identity(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32_768, 4))
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32_768, 4))
    model = SplitModel("wide", front, auxiliary_head=head, back=back, sample_losses=cross_entropy, input_shape=(8, 64, 64), num_classes=4)
    trainer = Trainer(model, settings(name, server_learning_rate=2e-3, server_weight_decay=0.0), trains_head=True)
    generator = np.random.default_rng(0)
    losses = []
    for _ in range(6):
        z, y = np.abs(generator.standard_normal((8, 8, 64, 64))).astype(np.float32), generator.integers(0, 4, 8)
        outcome = trainer.train(DecodedUpload(z, y))
        losses.append((outcome.head, outcome.server))
    heads, backs = zip(*losses, strict=True)
    # The back is the same layer at the rate that was asked for.
    assert max(heads) < 10 < max(backs)
