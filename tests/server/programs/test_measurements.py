"""What counting and comparing found is kept by all that it depends on: whatever changes is measured anew, and what is rotten too."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.algorithm.plan import Objective, Plan
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.base import BaseStorage
from heron_server.models.probes import Probes
from heron_server.models.split_model import SplitModel
from heron_server.programs import measurements as module
from heron_server.programs.cost import ClientCost, client_cost
from heron_server.programs.difference_gate import difference_error
from heron_server.programs.export import ProgramCache
from heron_server.programs.measurements import FIELDS_WITHOUT_EFFECT, Measurements
from tests.server.builders import plan

SCALES = np.ones(4)


class Measured:
    """Counts instead of measuring: each number is another one, so that one that comes twice was kept."""

    def __init__(self, directory: Path, model: SplitModel) -> None:
        self.directory, self.model = directory, model

    def difference(self, **changes: Any) -> float:
        given: dict[str, Any] = {"model": self.model, "plan": plan(), "program": b"program", "scales": SCALES, "seed": 0, **changes}
        return Measurements(self.directory).difference_error(*given.values())

    def cost(self, model: SplitModel | None = None, with_head: bool = True) -> int:
        return Measurements(self.directory).client_cost(model or self.model, with_head).forward_flops

    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.measurement"))


@pytest.fixture
def measured(tmp_path: Path, tiny_model: SplitModel, monkeypatch: pytest.MonkeyPatch) -> Measured:
    numbers = itertools.count(1)
    monkeypatch.setattr(module, "difference_error", lambda *_, **__: float(next(numbers)))
    monkeypatch.setattr(module, "client_cost", lambda *_, **__: ClientCost(next(numbers), 2, 3))
    return Measured(tmp_path, tiny_model)


def other_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return next(one for one in type(value) if one is not value)
    return value + 1


PLAN_FIELDS = [field.name for field in dataclasses.fields(Plan)]


def test_what_depends_on_the_same_is_measured_once(measured: Measured) -> None:
    assert [measured.difference(), measured.difference(), measured.cost(), measured.cost()] == [1, 1, 2, 2]


@pytest.mark.parametrize("field", sorted(set(PLAN_FIELDS) - set(FIELDS_WITHOUT_EFFECT)))
def test_another_plan_is_measured_anew(measured: Measured, field: str) -> None:
    before = measured.difference()
    assert measured.difference(plan=dataclasses.replace(plan(), **{field: other_value(getattr(plan(), field))})) != before


def test_what_is_said_to_have_no_effect_on_a_difference_has_none(tiny_model: SplitModel, program_cache: ProgramCache) -> None:
    program = program_cache.program(tiny_model, ProgramKind.LOSS, micro_batch=2)
    found = difference_error(tiny_model, plan(), program=program, scales=SCALES, seed=0)
    for field in FIELDS_WITHOUT_EFFECT:
        value = getattr(plan(), field)
        changed = dataclasses.replace(
            plan(), **{field: "other" if isinstance(value, str) and not isinstance(value, Enum) else other_value(value)}
        )
        assert difference_error(tiny_model, changed, program=program, scales=SCALES, seed=0) == found, field


@pytest.mark.parametrize("changes", [{"program": b"other"}, {"scales": SCALES * 2}, {"seed": 1}], ids=lambda changes: next(iter(changes)))
def test_another_program_scale_or_seed_is_measured_anew(measured: Measured, changes: dict[str, Any]) -> None:
    before = measured.difference()
    assert measured.difference(**changes) != before


def test_a_cost_with_the_head_is_another_one(measured: Measured) -> None:
    assert measured.cost(with_head=True) != measured.cost(with_head=False)


@pytest.mark.parametrize("part", ["front", "auxiliary_head"])
@pytest.mark.parametrize("frozen", [False, True])
def test_other_weights_are_measured_anew_also_by_the_same_measurements(measured: Measured, part: str, frozen: bool) -> None:
    weight = next(getattr(measured.model, part).parameters()).requires_grad_(not frozen)
    same = Measurements(measured.directory)
    before = same.difference_error(measured.model, plan(), program=b"program", scales=SCALES, seed=0)
    with torch.no_grad():
        weight.view(-1)[0] += 1
    assert same.difference_error(measured.model, plan(), program=b"program", scales=SCALES, seed=0) != before
    assert measured.difference() != before


def test_what_is_frozen_counts_and_not_only_its_value(measured: Measured) -> None:
    before = measured.difference(), measured.cost()
    next(measured.model.front.parameters()).requires_grad_(False)
    assert measured.difference() != before[0] and measured.cost() != before[1]


def test_the_back_counts_where_it_judges_and_nowhere_else(measured: Measured) -> None:
    judged = dataclasses.replace(plan(), objective=Objective.SERVER)
    own, servers = measured.difference(), measured.difference(plan=judged)
    with torch.no_grad():
        next(measured.model.back.parameters()).add_(1)
    assert measured.difference() == own and measured.difference(plan=judged) != servers


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"num_classes": 5},
        {"input_shape": (1, 5, 5)},
        {"lengths": (3,)},
        {"tokens": True},
        {"base_storage": BaseStorage.INT8},
        {"batch_statistics": True},
        {"sample_losses": lambda outputs, _: outputs.sum(1)},
        {"probes": Probes(np.ones((2, 1, 4, 4), np.float32), are_made_up=False)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_model_is_measured_anew(measured: Measured, changes: dict[str, Any]) -> None:
    before = measured.difference(), measured.cost()
    other = dataclasses.replace(measured.model, **changes)
    assert measured.difference(model=other) != before[0] and measured.cost(other) != before[1]


def test_a_layer_that_is_set_otherwise_is_another_model(measured: Measured) -> None:
    before = measured.cost()
    next(layer for layer in measured.model.front.modules() if isinstance(layer, torch.nn.Conv2d)).stride = (1, 1)
    assert measured.cost() != before


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(module, "library_version", lambda name: "0" if name == "torch" else "1"),
        lambda patch: patch.setattr(module, "_code", lambda: "other code"),
        lambda patch: patch.setattr("platform.machine", lambda: "other machine"),
        lambda patch: patch.setattr("torch.get_num_threads", lambda: 17),
    ],
    ids=["versions", "code", "machine", "threads"],
)
def test_other_circumstances_are_measured_anew(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    before = measured.difference(), measured.cost()
    change(monkeypatch)
    assert measured.difference() != before[0] and measured.cost() != before[1]


def sealed(document: Any) -> bytes:
    data = json.dumps(document).encode()
    return hashlib.sha256(data).digest() + data


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole, _: b"",
        lambda whole, _: whole[:-1],
        lambda whole, _: whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        lambda whole, _: sealed([]),
        lambda whole, _: sealed({"key": "of another", "value": 1.5}),
        lambda whole, key: sealed({"key": key}),
        lambda whole, key: sealed({"key": key, "value": "1.5"}),
        lambda whole, key: sealed({"key": key, "value": -1.0}),
        lambda whole, key: sealed({"key": key, "value": float("nan")}),
        lambda whole, key: sealed({"key": key, "value": {"forward_flops": 1, "num_parameters": 1}}),
        lambda whole, key: sealed({"key": key, "value": {"forward_flops": True, "num_parameters": 1, "activation_bytes": 1}}),
        lambda whole, key: sealed({"key": key, "value": {"forward_flops": -1, "num_parameters": 1, "activation_bytes": 1}}),
    ],
)
@pytest.mark.parametrize("what", ["difference", "cost"])
def test_an_entry_that_cannot_be_true_is_measured_and_written_anew(
    measured: Measured, what: str, spoil: Callable[[bytes, str], bytes]
) -> None:
    measure: Callable[[], float] = getattr(measured, what)
    before = measure()
    (file,) = measured.files()
    file.write_bytes(spoil(file.read_bytes(), file.stem))
    after = measure()
    assert after != before and measure() == after


def test_where_nothing_can_be_kept_it_is_measured_and_said_once(measured: Measured, caplog: pytest.LogCaptureFixture) -> None:
    (measured.directory / "file").write_text("")
    nowhere = Measurements(measured.directory / "file" / "cache")
    assert [nowhere.difference_error(measured.model, plan(), program=b"program", scales=SCALES, seed=seed) for seed in (0, 1)] == [1, 2]
    assert caplog.text.count("cannot be written") == 1


def test_of_a_users_model_only_what_its_program_says_is_kept(measured: Measured) -> None:
    own = dataclasses.replace(measured.model, code_digest="2:code")
    judged = dataclasses.replace(plan(), objective=Objective.SERVER)
    assert measured.difference(model=own) == measured.difference(model=own)
    assert measured.difference(model=own, plan=judged) != measured.difference(model=own, plan=judged)
    assert measured.cost(own) != measured.cost(own)


def test_what_is_kept_is_what_was_measured(tmp_path: Path, tiny_model: SplitModel, program_cache: ProgramCache) -> None:
    program = program_cache.program(tiny_model, ProgramKind.LOSS, micro_batch=2)
    for _ in range(2):
        found = Measurements(tmp_path)
        assert found.difference_error(tiny_model, plan(), program=program, scales=SCALES, seed=0) == difference_error(
            tiny_model, plan(), program=program, scales=SCALES, seed=0
        )
        assert found.client_cost(tiny_model, True) == client_cost(tiny_model, True)
