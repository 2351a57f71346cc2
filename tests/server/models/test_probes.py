"""What a user's model is tried on: its operator's own samples where there are any; else one sentence, the same for every seed. State that moves is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_cli.cli import main
from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_common.errors import ConfigurationError, StorageError
from heron_common.specification.data_specification import DataSpecification
from heron_server.exports.trained_model import load_trained
from heron_server.exports.vouching import Vouched
from heron_server.models.probes import Probes
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.models.user.moving_state import refuse_moving_state
from heron_server.storage.probe_file import read_probe_file, write_probe_file

DATA = DataSpecification("test", (8,), num_classes=2)

SOURCE = '''
import torch
from torch import nn


class Front(nn.Module):
    """What a test computes, then a linear layer."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.line = kind, nn.Linear(8, 4)
        self.embedding = nn.Embedding(5, 8) if kind == "category" else None

    def forward(self, x):
        if self.kind == "logarithm":
            x = torch.log(x)
        elif self.kind == "root":
            x = torch.sqrt(x)
        elif self.kind == "category":
            x = self.embedding(x[:, 0].long()) + x
        elif self.kind == "rare":
            x = torch.sqrt(x + 3)
        return torch.tanh(self.line(x))


class Careful(Front):
    def forward(self, x):
        if x.shape[1] != 8:
            raise ValueError
        return super().forward(x)


class Hides(nn.Module):
    def forward(self, x):
        return torch.nan_to_num(x)


def model(kind="plain", careful=False):
    return nn.Sequential((Careful if careful else Front)(kind), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def hidden(kind="logarithm"):
    return nn.Sequential(Front(kind), Hides(), nn.Linear(4, 2))


def broken_weight():
    made = model()
    with torch.no_grad():
        made[1].weight[0, 0] = float("nan")
    return made


class LogHead(nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        self.line = nn.Linear(width, num_classes)

    def forward(self, z):
        return self.line(torch.log(z))


def head(cut, num_classes):
    return LogHead(cut[0], num_classes)


space = {}
exec("""
from torch import nn
class Made(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8, 4)
    def forward(self, x):
        if x.shape[1] != 8:
            raise ValueError
        return self.l(x)
""", space)


def sourceless():
    return nn.Sequential(space["Made"](), nn.Linear(4, 2))


class RunNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0) * 0.1)
        return x - self.mean


class Level(nn.Module):
    """A running level that is no buffer."""

    def __init__(self):
        super().__init__()
        self.level = 1.0

    def forward(self, x):
        if self.training:
            self.level = 0.9 * self.level + 0.1 * float(x.detach().abs().mean())
        return x / self.level


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.passes += 1
        return x * 1


def spectral(old=False):
    norm = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    return norm(nn.Linear(8, 4))


KINDS = {"norm": RunNorm, "level": Level, "counter": Counter, "spectral": spectral, "old": lambda: spectral(True)}


def moving(kind, evaluates=False):
    part = KINDS[kind]()
    if evaluates:
        part.eval()
    front = nn.Sequential(part, nn.Tanh()) if "spectral" in kind or kind == "old" else nn.Sequential(part, nn.Linear(8, 4))
    return nn.Sequential(front, nn.Linear(4, 2))


def instance(evaluates=False):
    part = nn.InstanceNorm1d(4, track_running_stats=True)
    return nn.Sequential(nn.Sequential(nn.Linear(8, 12), nn.Unflatten(1, (4, 3)), part.eval() if evaluates else part, nn.Flatten()), nn.Linear(12, 2))
'''


@pytest.fixture(autouse=True)
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory with `probes_zoo.py` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "probes_zoo.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("probes_zoo", None)


def build(name: str, seed: int = 0, probes: Probes | None = None, **options: Any) -> SplitModel:
    return build_model(f"python:probes_zoo:{name}", options, data=DATA, seed=seed, cut="0", probes=probes)


def refusal(name: str, seed: int = 0, probes: Probes | None = None, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        refuse_moving_state(build(name, seed, probes, **options))
    sentence = str(caught.value)
    assert "\n" not in sentence and not sentence.endswith(".")
    return sentence


def own(rows: int = 40) -> Probes:
    """Positive numbers, a category in the first column."""
    generator = np.random.default_rng(0)
    x = np.exp(generator.standard_normal((rows, 8))).astype(np.float32)
    x[:, 0] = generator.integers(1, 5, rows)
    return Probes(x, are_made_up=False)


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("kind", ["logarithm", "root", "category", "rare"])
def test_models_that_dislike_normal_numbers_say_so_whatever_the_seed_and_take_the_operators_samples(kind: str, careful: bool) -> None:
    first, second = (refusal("model", seed, kind=kind, careful=careful) for seed in (0, 1))
    assert first == second
    assert "samples of standard normal numbers" in first and "--eval-data" in first
    split = build("model", probes=own(), kind=kind, careful=careful)
    generator = np.random.default_rng(1)
    drawn, _ = split.random_batch(100, generator)
    rows = {tuple(row) for row in own().x}
    assert all(tuple(row) in rows for row in drawn) and len({tuple(row) for row in split.random_batch(40, generator)[0]}) == 40
    assert all(tuple(row) in rows for row in split.example(3).numpy())


def test_values_that_are_no_numbers_are_named_before_and_at_the_cut() -> None:
    assert "in the weight 1.weight" in refusal("broken_weight")
    assert "activations at the cut" in refusal("hidden")
    assert "head 'python:probes_zoo:head' was given activations" in refusal("model", head="python:probes_zoo:head")
    assert "samples of the run's own data" in refusal("model", probes=Probes(-own().x, are_made_up=False), kind="logarithm")


def test_places_to_cut_are_listed_for_the_operators_samples(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(zoo / "data.npz", x=own().x, y=np.zeros(40, np.int64))
    words = ["cuts", "--model", "python:probes_zoo:model", "--model-options", "kind=category", "--data-spec", "8:2"]
    assert main([*words, "--eval-data", "npz:data.npz"]) == 0
    assert "4 places to cut" in capsys.readouterr().out
    assert main(words) == 2
    assert "give --eval-data" in capsys.readouterr().err


def test_classes_without_source_are_taken(zoo: Path) -> None:
    assert build("sourceless").code_digest == build("sourceless").code_digest


ALL = Vouched(model=None, model_options=None, trusts_code=True)


def test_a_run_on_the_operators_samples_keeps_them_for_what_comes_later(zoo: Path, program_cache_dir: Path) -> None:
    x, y = own(64).x, np.arange(64) % 2
    np.savez(zoo / "data.npz", x=x, y=y)
    options = {"model": "python:probes_zoo:model", "model_options": "kind=category", "cut": "0", "data_spec": "8:2", "data": "npz:data.npz"}
    few = {"clients": 2, "rounds": 1, "local_steps": 1, "batch_size": 4, "preset": "frozen", "program_cache": program_cache_dir}
    assert simulate(simulation_config(run_dir=zoo / "run", **options, **few))["rounds_completed"] == 1
    trained = load_trained(zoo / "run", vouched=ALL).model
    kept = read_probe_file(zoo / "run", (8,))
    assert trained.probes is not None and kept is not None and np.array_equal(trained.probes.x, kept)
    assert {tuple(row) for row in kept} <= {tuple(row) for row in x}
    (zoo / "data.npz").unlink()
    load_trained(zoo / "run", vouched=ALL)
    for content in (b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", (zoo / "run" / "probes.safetensors").read_bytes()[:-1]):
        (zoo / "run" / "probes.safetensors").write_bytes(content)
        with pytest.raises(StorageError, match=r"probes\.safetensors is damaged"):
            load_trained(zoo / "run", vouched=ALL)


@pytest.mark.parametrize("x", [np.ones((3, 7), np.float32), np.ones((3, 8), np.float64), np.full((3, 8), np.nan, np.float32)])
def test_kept_samples_of_another_form_are_refused(zoo: Path, x: Any) -> None:
    write_probe_file(zoo, x)
    with pytest.raises(StorageError, match="no samples of shape 8"):
        read_probe_file(zoo, (8,))
    (zoo / "probes.safetensors").unlink()
    (zoo / "probes.safetensors").symlink_to("/dev/zero")
    with pytest.raises(StorageError, match="not a plain file"):
        read_probe_file(zoo, (8,))


# --- state that clients would never move


@pytest.mark.parametrize(("kind", "name"), [("norm", "0.0.mean"), ("spectral", "_u"), ("old", "weight_u")])
def test_buffers_in_front_that_training_moves_are_refused_by_name_and_stay_where_they_are_in_evaluation_mode(kind: str, name: str) -> None:
    sentence = refusal("moving", kind=kind)
    assert name in sentence.split(" in front")[0] and "moves while the model trains" in sentence and "after eval()" in sentence
    split = build("moving", kind=kind, evaluates=True)
    refuse_moving_state(split)
    before = {key: value.clone() for key, value in split.front.state_dict().items()}
    split.front.train()(torch.randn(3, 8))
    assert all(torch.equal(value, before[key]) for key, value in split.front.state_dict().items())


def test_normalisation_with_running_statistics_of_another_kind_is_refused() -> None:
    assert "running_mean" in refusal("instance")
    refuse_moving_state(build("instance", evaluates=True))


def test_state_that_is_no_buffer_is_refused_and_counters_may_count() -> None:
    assert "keeps values that clients would never have" in refusal("moving", kind="level")
    refuse_moving_state(build("moving", kind="counter"))
