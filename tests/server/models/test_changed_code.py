"""Code that computes something else is noticed wherever it lies: by the cache of programs, and where a run is taken up again."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heron_common.errors import StorageError
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.behaviour import behaves_otherwise, behaviour, computes_otherwise
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.programs.export import ProgramCache
from heron_server.storage.run_directory import RunDirectory, RunIdentity, recorded_identity

DATA = DataSpecification("test", (8,), num_classes=2)

SOURCE = """
import changing_helpers
import torch
from changing_helpers import squash
from torch import fx, nn

fx.wrap("squash")


class Front(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8, 4)

    def forward(self, x):
        if x.shape[1] != 8:
            raise ValueError("eight sensors")
        return squash(self.l(x))


class Wrapped(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.l = nn.Linear(4, n)

    def forward(self, x):
        return squash(self.l(x))


class Function(nn.Module):
    # A function in an attribute, as people make activations a parameter.
    def __init__(self):
        super().__init__()
        self.l = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True, activation=changing_helpers.squash)
        self.l.self_attn.batch_first = True

    def forward(self, x):
        return self.l(x.reshape(-1, 2, 4)).flatten(1)


class Branches(nn.Module):
    # The other branch is not taken by any sample.
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 2)

    def forward(self, z):
        if z.abs().max() > 1e9:
            return changing_helpers.squash(self.l(z))
        return self.l(z)


class Trains(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 2)

    def forward(self, z):
        if self.training:
            return squash(self.l(z))
        return self.l(z)


def front():
    return nn.Sequential(Front(), nn.Linear(4, 2))


def wrapped():
    return nn.Sequential(nn.Sequential(nn.Linear(8, 4), Wrapped()), nn.Linear(4, 2))


def function():
    return nn.Sequential(Function(), nn.Linear(8, 2))


def branches():
    return nn.Sequential(nn.Linear(8, 4), Branches())


def trains():
    return nn.Sequential(nn.Linear(8, 4), Trains())


def head(cut, num_classes):
    return Wrapped(num_classes)


def plain():
    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
"""

HELPERS = """
import torch

FACTOR = 1.0


def squash(x):
    return torch.tanh(x) * FACTOR
"""

EDITS = {"the function": ("torch.tanh(x)", "torch.sigmoid(x) * 3"), "a global": ("FACTOR = 1.0", "FACTOR = 1.5")}


@pytest.fixture(autouse=True)
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory with `changing_zoo.py` and the module that it imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "changing_zoo.py").write_text(SOURCE)
    write_helpers("", "")
    yield tmp_path
    forget()


def forget() -> None:
    for name in ("changing_zoo", "changing_helpers"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def write_helpers(before: str, after: str) -> None:
    """Write the imported module anew; what was imported is forgotten, as it is in a new process."""
    Path("changing_helpers.py").write_text(
        HELPERS.replace(before, after) + f"\n# {len(after)} characters are new: the file has another size.\n"
    )
    forget()


def build(name: str, **options: Any) -> SplitModel:
    return build_model(f"python:changing_zoo:{name}", options, data=DATA, seed=0, cut="0")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of programs that were compiled."""
    kinds: list[str] = []

    def export(function: Any) -> bytes:
        kinds.append(function.kind.value)
        return f"{len(kinds)}".encode()

    monkeypatch.setattr("heron_server.programs.export.export", export)
    return kinds


@pytest.mark.parametrize(
    ("name", "options", "edit"),
    [
        ("front", {}, "the function"),
        ("plain", {"head": "python:changing_zoo:head"}, "a global"),
        pytest.param("wrapped", {}, "the function", marks=pytest.mark.slow),
        pytest.param("function", {}, "a global", marks=pytest.mark.slow),
    ],
)
def test_a_program_is_compiled_anew_after_any_code_that_it_comes_from_was_edited(
    name: str, options: dict[str, str], edit: str, zoo: Path, compiled: list[str]
) -> None:
    cache = ProgramCache(zoo / "cache")

    def program() -> bytes:
        return cache.program(build(name, **options), ProgramKind.LOSS, micro_batch=1)

    assert program() == program() == b"1"
    write_helpers("squash(x):", "squash(x):  # only a comment")
    assert program() == b"1"
    write_helpers(*EDITS[edit])
    assert program() == program() == b"2"
    write_helpers("", "")
    assert program() == b"1" and compiled == ["loss"] * 2


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("function", "the function"),
        ("branches", "a global"),
        ("trains", "the function"),
        pytest.param("front", "a global", marks=pytest.mark.slow),
        pytest.param("wrapped", "the function", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_computes_something_else_by_now_is_noticed_wherever_its_code_lies(name: str, edit: str) -> None:
    model = build(name)
    code, then = model.code_digest, behaviour(model)
    assert not computes_otherwise(code, then, build(name))
    write_helpers("squash(x):", "squash(x):  # only a comment")
    assert not computes_otherwise(code, then, build(name))
    write_helpers(*EDITS[edit])
    assert computes_otherwise(code, then, build(name))


def test_what_cannot_be_compared_is_not_called_another() -> None:
    model, other = build("front"), build_model("python:changing_zoo:front", {}, data=DATA, seed=1, cut="0")
    assert not computes_otherwise("0123", {}, model)
    assert not computes_otherwise("", {}, model)
    assert not behaves_otherwise(behaviour(model), behaviour(other))
    rounded = {name: [value * (1 + 1e-5) for value in values] for name, values in behaviour(model).items()}
    assert not computes_otherwise(model.code_digest, rounded, model)


def test_a_record_says_how_the_first_model_behaved_and_a_damaged_one_is_refused(zoo: Path) -> None:
    model = build("front")
    directory = RunDirectory(zoo / "run")
    directory.record(RunIdentity("id", {"model": "m"}, model_code=model.code_digest, behaviour=behaviour(model)))
    directory.close()
    identity = recorded_identity(zoo / "run")
    assert identity.behaviour == behaviour(model) and len(identity.behaviour["outputs"]) == 8
    document = json.loads((zoo / "run" / "run.json").read_text())
    for behaved in ([], {"outputs": 1.0}, {"outputs": ["a"]}, {"outputs": [[]]}):
        (zoo / "run" / "run.json").write_text(json.dumps({**document, "behaviour": behaved}))
        with pytest.raises(StorageError, match="is damaged"):
            recorded_identity(zoo / "run")
    older = {key: value for key, value in document.items() if key != "behaviour"}
    (zoo / "run" / "run.json").write_text(json.dumps(older))
    assert recorded_identity(zoo / "run").behaviour == {}
