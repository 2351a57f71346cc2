"""Models of users, cut behind a named submodule: both sides are the whole, names stay, and what cannot be cut is refused with one sentence that names it."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_common.data.digits import DIGITS_SPECIFICATION
from heron_common.data.reading import SampleReader
from heron_common.data.sources import open_source
from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification, Task
from heron_common.specification.model_spec import ProgramKind
from heron_server.exports.trained_model import load_trained
from heron_server.exports.vouching import Vouched
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, load_flat_parameters
from heron_server.models.user.user_module import UserModel, whole_state
from heron_server.programs.compile import compile_function
from tests.server.models.user_models import SOURCE

DATA = DataSpecification("test", (1, 8, 8), num_classes=10)


@pytest.fixture(autouse=True)
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory with `zoo.py` in it; what is imported from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "zoo.py").write_text(SOURCE)
    yield tmp_path
    for name in ("zoo", "broken"):
        sys.modules.pop(name, None)


def build(name: str, cut: str | None, data: DataSpecification = DATA, seed: int = 0, **options: Any) -> SplitModel:
    return build_model(f"python:zoo:{name}", options, data=data, seed=seed, cut=cut)


def refusal(name: str, cut: str | None, data: DataSpecification = DATA, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        build(name, cut, data, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and not sentence.endswith(".")
    return sentence


def whole(name: str, **options: Any) -> UserModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UserModel(f"python:zoo:{name}", options, data=DATA)


PLACES = {
    "resnet": ("conv1", "bn1", "relu", "maxpool", "layer1.0", "layer1", "layer2.0", "layer2", "avgpool"),
    "sequential": ("0", "1", "2", "3.0", "3.1", "3", "4"),
    "Transformer": ("patch", "blocks.0", "blocks.1"),
    "halved": ("first", "inner", "second"),
}


@pytest.mark.parametrize("name", PLACES)
def test_both_sides_of_every_place_are_the_whole_and_keep_its_names(name: str) -> None:
    model = whole(name)
    assert model.cutter.places == PLACES[name]
    x = torch.randn(4, 1, 8, 8)
    state = model.whole.state_dict()
    for place in PLACES[name]:
        split = build(name, place)
        torch.testing.assert_close(split.back.eval()(split.front(x.clone())), model.whole(x.clone()))
        front, back = split.front.state_dict(), split.back.state_dict()
        assert front.keys().isdisjoint(back)
        assert {*front, *back} == {key for key in state if not key.startswith("unused")}
        assert all(torch.equal(value, state[key]) for key, value in whole_state(split).items())
        assert split.to_spec().cut.shape == tuple(split.front(x).shape[1:])
        assert split.auxiliary_head(split.front(x)).shape == (4, 10)
        compile_function(split, ProgramKind.LOSS, micro_batch=1)


def test_trained_weights_go_back_into_the_users_model() -> None:
    split = build("resnet", "layer1")
    for part in (split.front, split.back):
        size = sum(p.numel() for p in part.parameters())
        load_flat_parameters(part, np.random.default_rng(size).standard_normal(size).astype(np.float32))
    original = whole("resnet").whole
    original.load_state_dict(whole_state(split), strict=False)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(original(x), split.back.eval()(split.front(x)))


def test_the_server_may_use_activations_again_after_its_back_ran() -> None:
    split = build("resnet", "bn1")  # a ReLU in place comes next
    z = torch.randn(2, 4, 8, 8)
    before = z.clone()
    split.back.train()(z)
    assert torch.equal(z, before)
    split.back(z.requires_grad_()).sum().backward()
    assert z.grad is not None


def test_the_sides_share_no_tensor_and_the_same_seed_gives_the_same_weights() -> None:
    split, same, other = build("resnet", "layer1"), build("resnet", "layer1"), build("resnet", "layer1", seed=1)
    addresses = [{p.data_ptr() for p in part.parameters()} for part in (split.front, split.back)]
    assert addresses[0].isdisjoint(addresses[1])
    assert split.name == same.name
    assert torch.equal(split.front.conv1.weight, same.front.conv1.weight)  # type: ignore[arg-type, union-attr]
    assert not torch.equal(split.front.conv1.weight, other.front.conv1.weight)  # type: ignore[arg-type, union-attr]


def test_another_model_of_the_same_name_has_another_key_for_its_programs(zoo: Path) -> None:
    name = build("gated", "first").name
    assert build("sequential", "2").name != build("sequential", "2", head="python:zoo:wide_head").name
    (zoo / "zoo.py").write_text(SOURCE.replace("self.first(self.flat(x))", "self.first(self.flat(x).tanh())"))
    sys.modules.pop("zoo")
    assert build("gated", "first").name != name


# --- places where a cut does not work


@pytest.mark.parametrize(
    ("name", "cut", "words"),
    [
        ("Skip", "second", ["'second'", "the output of 'first'", "exactly one tensor"]),
        ("resnet", "layer2.0.conv1", ["'layer2.0.downsample'", "cross", "--cut can be conv1, bn1"]),
        ("Tied", "second", ["second.weight (which is third.weight)", "both sides"]),
        ("Twice", "second", ["called 2 times"]),
        ("Recurrent", "recurrent", ["several values", "one float32 tensor"]),
        ("Plain", "last", ["no weights would be left behind"]),
        ("Plain", "flat", ["no weights would be left in front"]),
        ("Plain", "nowhere", ["has no submodule 'nowhere'", "--cut can be first, second"]),
        ("Plain", None, ["needs --cut", "first, second"]),
        ("Transformer", "blocks", ["a list"]),
        ("Transformer", "blocks.0.linear1", ["inside 'blocks.0'", "a layer of torch"]),
        ("resnet", "unused", ["forward does not call it"]),
        ("FrozenFirst", "first", ["left in front for clients to train"]),
        ("Narrow", "second", ["first.weight is bfloat16", "float()"]),
        ("gated", "second", ["inner in front", "branches on the values of the data", "zoo.py, line", "if x.max() > 1e9:"]),
        ("Branching", "first", ["own forward", "zoo.py, line", "if x.sum() > 0:"]),
        ("Trains", "first", ["training mode", "only dropout may differ"]),
        ("Random", "first", ["does not compute what it computes as a whole"]),
        ("TwoInputs", "first", ["mask"]),
        ("Pair", "first", ["a tuple", "logits of shape [2, 10]"]),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(name: str, cut: str | None, words: list[str]) -> None:
    sentence = refusal(name, cut)
    assert all(word in sentence for word in words), sentence


def test_what_cannot_be_traced_may_stand_behind_the_cut_and_what_acts_otherwise_in_training_keeps_doing_so() -> None:
    x = torch.randn(3, 1, 8, 8)
    split = build("gated", "first")
    assert torch.equal(split.back.eval()(split.front(x)), whole("gated").whole(x))
    noisy = build("noisy", "first")
    z = noisy.front(x)
    assert not torch.equal(noisy.back.train()(z), noisy.back(z))
    assert torch.equal(noisy.back.eval()(z), noisy.back(z))
    assert torch.equal(build("noisy", "inner").front(x), z)


# --- dropout and batch normalisation


@pytest.mark.parametrize(("name", "cut"), [("FunctionalDropout", "first"), ("Transformer", "blocks.0")])
def test_dropout_is_off_in_the_front_and_acts_in_the_back_while_it_trains(name: str, cut: str) -> None:
    split = build(name, cut)
    x = torch.randn(8, 1, 8, 8)
    assert torch.equal(split.front(x), split.front(x))
    z = split.front(x)
    assert not torch.equal(split.back.train()(z), split.back(z))
    assert torch.equal(split.back.eval()(z), split.back(z))


def test_batch_normalisation_in_front_must_be_frozen_and_then_stays_so_on_both_sides() -> None:
    assert "batch normalisation bn1 in front makes a sample depend on its batch" in refusal("resnet", "layer1", norm="moving")
    moving, frozen = build("resnet", "conv1", norm="moving"), build("resnet", "bn1", norm="frozen")
    for split, moves in ((moving, True), (frozen, False)):
        before = split.back.layer1.get_submodule("0").bn1.running_mean.clone()  # type: ignore[union-attr, operator]
        split.back.train()(torch.randn(4, 4, 8, 8))
        assert torch.equal(split.back.layer1.get_submodule("0").bn1.running_mean, before) is not moves  # type: ignore[union-attr]
    assert "bn1.running_mean" in frozen.front.state_dict()


# --- callables and their options


def test_the_callable_is_given_what_it_asks_for_and_its_options_as_what_they_say() -> None:
    split = build("sequential", "2", DataSpecification("test", (1, 8, 8), num_classes=3), width="6", classes="3")
    assert split.front.get_submodule("0").weight.shape[0] == 6  # type: ignore[union-attr, index]
    assert build("resnet", "layer1", DataSpecification("test", (3, 8, 8), num_classes=7)).num_classes == 7


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("python:nowhere:build", {}, ["no module named 'nowhere'"]),
        ("python:zoo:nothing", {}, ["zoo has no 'nothing'", "resnet"]),
        ("python:zoo", {}, ["python:MODULE:CALLABLE"]),
        ("python:broken:build", {}, ["broken.py, line 2", "1 / 0"]),
        ("python:zoo:F", {}, ["a module", "callable"]),
        ("python:zoo:number", {}, ["a int", "torch.nn.Module"]),
        ("python:zoo:failing", {}, ["no weights on disk", "zoo.py, line"]),
        ("python:zoo:sequential", {"depth": "3"}, ["'depth'", "width, classes"]),
        ("python:zoo:sequential", {"classes": "4"}, ["[2, 10]", "[2, 4]"]),
        ("python:zoo:sequential", {"head": "python:zoo:narrow_head"}, ["narrow_head", "[B, 10]"]),
        ("python:zoo:sequential", {"head": "python:zoo:number"}, ["head 'python:zoo:number'"]),
    ],
)
def test_a_mistake_in_the_callable_or_its_options_is_one_sentence(zoo: Path, name: str, options: dict[str, str], words: list[str]) -> None:
    (zoo / "broken.py").write_text("\n1 / 0\n")
    with pytest.raises(ConfigurationError) as caught:
        build_model(name, options, data=DATA, seed=0, cut="2")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_samples_of_another_shape_are_refused_with_the_models_own_words() -> None:
    sentence = refusal("sequential", "2", DataSpecification("test", (3, 8, 8), num_classes=10))
    assert "3x8x8, as --data-spec says" in sentence and "expected input" in sentence


@pytest.mark.parametrize(("name", "cut", "head"), [("Plain", "first", [(10, 6), (10,)]), ("Transformer", "blocks.0", [(10, 8), (10,)])])
def test_heads_fit_vectors_and_sequences(name: str, cut: str, head: list[tuple[int, ...]]) -> None:
    assert [tuple(p.shape) for p in build(name, cut).auxiliary_head.parameters()] == head


def test_heads_of_images_see_at_most_four_by_four_places_and_a_users_own_head_is_taken() -> None:
    assert [tuple(p.shape) for p in build("sequential", "2").auxiliary_head.parameters()] == [(10, 64), (10,)]
    own = build("sequential", "2", head="python:zoo:wide_head").auxiliary_head
    assert [tuple(p.shape) for p in own.parameters()] == [(5, 256), (5,), (10, 5), (10,)]


def test_activations_that_no_head_fits_ask_for_one() -> None:
    sentence = refusal("volumes", "0", DataSpecification("test", (1, 2, 4, 4), num_classes=10))
    assert "head=python:MODULE:CALLABLE" in sentence and "2x2x4x4" in sentence


def test_a_regression_is_cut_like_a_classification() -> None:
    split = build("sequential", "2", dataclasses.replace(DATA, task=Task.REGRESSION))
    assert split.sample_losses(split.back(split.front(torch.zeros(3, 1, 8, 8))), torch.zeros(3, 10)).shape == (3,)


def test_frozen_weights_stand_in_front_beside_trained_ones() -> None:
    split = build("FrozenFirst", "second")
    assert [spec.name for spec in split.to_spec().client_model] == ["second.weight", "second.bias"]
    assert [frozen.spec.name for frozen in split.frozen] == ["first.weight", "first.bias"]


# --- a run


def changed_code(zoo: Path, before: str, after: str) -> None:
    """Write the module anew; what was imported of it is forgotten, as it is in a new process."""
    (zoo / "zoo.py").write_text(SOURCE.replace(before, after))
    sys.modules.pop("zoo", None)
    importlib.invalidate_caches()


def test_code_that_computes_something_else_by_now_is_named_where_a_run_is_taken_up_again(
    zoo: Path, program_cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"model": "python:zoo:sequential", "cut": "3", "clients": 1, "local_steps": 1, "program_cache": program_cache_dir}

    def run(**more: Any) -> None:
        simulate(simulation_config(data="digits", run_dir=zoo / "run", **options, **more))

    def sentences() -> list[str]:
        found = [record.getMessage() for record in caplog.records if "does not compute what it did" in record.getMessage()]
        caplog.clear()
        return found

    run(rounds=1, preset="frozen")
    load_trained(zoo / "run", vouched=Vouched("python:zoo:sequential"))
    changed_code(zoo, "def sequential(", "# A comment changes nothing.\ndef sequential(")
    load_trained(zoo / "run", vouched=Vouched("python:zoo:sequential"))
    assert sentences() == []
    before = "nn.GroupNorm(1, width), nn.ReLU()"
    changed_code(zoo, before, "nn.GroupNorm(1, width), nn.LeakyReLU()")
    load_trained(zoo / "run", vouched=Vouched("python:zoo:sequential"))
    (sentence,) = sentences()
    assert "python:zoo:sequential" in sentence and "bring back the code" in sentence
    run(rounds=2, preset="frozen", resume=True)
    assert len(sentences()) == 1
    changed_code(zoo, before, before)
    load_trained(zoo / "run", vouched=Vouched("python:zoo:sequential"))
    assert sentences() == []


def test_a_users_model_trains_and_its_checkpoint_has_its_names(tmp_path: Path, program_cache_dir: Path) -> None:
    options = {
        "model": "python:zoo:sequential",
        "cut": "3",
        "clients": 2,
        "rounds": 2,
        "local_steps": 3,
        "program_cache": program_cache_dir,
    }
    summary = simulate(simulation_config(data="digits", run_dir=tmp_path / "run", **options))
    assert summary["rounds_completed"] == 2
    tensors = load_file(summary["checkpoint"])
    assert {f"front.{name}" for name in ("0.weight", "1.bias", "3.0.weight")} <= set(tensors)
    trained = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(("front.", "back."))}
    untrained, original = whole("sequential").whole, whole("sequential").whole
    original.load_state_dict(trained)
    moved = {name.partition(".")[0] for name, p in original.named_parameters() if not torch.equal(p, untrained.get_parameter(name))}
    assert moved == {"0", "1", "3", "5"}
    test = open_source("digits:test")
    x, y = SampleReader(test, DIGITS_SPECIFICATION).batch(np.arange(test.num_examples))
    with torch.no_grad():
        accuracy = float((original.eval()(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
    assert accuracy == pytest.approx(summary["rounds"][-1]["test_accuracy"])
