"""What torch.fx would lose of a user's model is kept whole or refused by name, and a model that is built and traced stays bit-equal as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel

DATA = DataSpecification("test", (8,), num_classes=2)

SOURCE = '''
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MADE = []


class Base(nn.Module):
    """stem, body, head; what a test puts around them."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def middle(self, x):
        return torch.tanh(self.body(x))

    def forward(self, x):
        return self.head(self.middle(self.stem(x)))


class NoGrad(Base):
    def middle(self, x):
        with torch.no_grad():
            return super().middle(x)


class Decorated(Base):
    @torch.no_grad()
    def middle(self, x):
        return super().middle(x)


class Inference(Base):
    def middle(self, x):
        with torch.inference_mode():
            return super().middle(x)


class SetGrad(Base):
    def middle(self, x):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        x = super().middle(x)
        torch.set_grad_enabled(before)
        return x


class Autocast(Base):
    def middle(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().middle(x).float()


class Submodule(Base):
    """The body is a module of its own kind, which a graph would flatten."""

    def __init__(self, inner):
        super().__init__()
        self.body = inner


class FrozenPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        with torch.no_grad():
            y = self.inner(x)
        return x + y


class Chance(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        if self.training and random.random() < 0.9:
            return self.inner(x)
        return self.inner(x)


class Stateful(nn.Module):
    """Moves its mean whatever the mode is."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.register_buffer("mean", torch.full((6,), 300.0))

    def forward(self, x):
        self.mean.mul_(0.9)
        return self.inner(x) - self.mean / 300


class Average(nn.Module):
    """The same by an attribute that is no buffer."""

    def __init__(self):
        super().__init__()
        self.inner, self.level = nn.Linear(6, 6), 1.0

    def forward(self, x):
        self.level = 0.5 * self.level
        return self.inner(x) * self.level


class RunNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.register_buffer("mean", torch.full((d,), 300.0))
        self.register_buffer("var", torch.full((d,), 2500.0), persistent=False)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0) * 0.1)
                self.var.mul_(0.9).add_(x.var(0) * 0.1)
                random.random(), np.random.rand(), torch.rand(1)
        return (x - self.mean) / (self.var + 1e-5).sqrt()


def normed():
    model = nn.Sequential(nn.Sequential(RunNorm(8), nn.Linear(8, 6)), nn.Dropout(0.5), nn.Linear(6, 2))
    model[2].eval()
    MADE.append(model)
    return model


def hooked(where, kind):
    model = Submodule(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    target = model if where == "root" else model.body
    if kind == "forward":
        target.register_forward_hook(lambda module, inputs, outputs: outputs * 3)
    elif kind == "pre":
        target.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))
    else:
        target.register_full_backward_hook(lambda module, into, out: (into[0] * 3,))
    return model


def weight_hook():
    model = Base()
    model.head.weight.register_hook(lambda gradient: gradient * 0)
    return model


class Overrides(Submodule):
    """Keeps its body in evaluation mode, and its head's bias frozen, as people write it."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)))

    def train(self, mode=True):
        super().train(mode)
        self.body.eval()
        self.head.bias.requires_grad_(False)
        return self


def returned_in_evaluation_mode():
    model = Submodule(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)))
    model.body.eval()
    return model


def no_grad_inside():
    return Submodule(FrozenPart())


def chance():
    return Submodule(Chance())


def stateful():
    return Submodule(Stateful())


def average():
    return Submodule(Average())


class OwnAverage(Base):
    def __init__(self):
        super().__init__()
        self.level = 1.0

    def middle(self, x):
        self.level = 0.5 * self.level
        return super().middle(x) * self.level


class Detached(Base):
    def middle(self, x):
        return super().middle(x.detach())


class Lazy(Base):
    def __init__(self):
        super().__init__()
        self.body = nn.LazyLinear(6)


class Kwargs(Base):
    def forward(self, x, **kwargs):
        return super().forward(x)


class Args(Base):
    def forward(self, *args, scale=1.0, **kwargs):
        return super().forward(args[0]) * scale


class Containers(Base):
    def forward(self, x, shape=(-1, 6), scales=[2.0], named={"factor": 3.0}, size=torch.Size([2]), *args, flag=None, **kwargs):
        return self.head(self.stem(x).reshape(shape) * scales[0] * named["factor"] * len(size)).reshape(-1, *size)


def no_gradient_head(cut, num_classes):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(cut[0], num_classes)

        def forward(self, z):
            return self.last(z.detach())

    return Head()
'''


@pytest.fixture(autouse=True)
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory with `capture_zoo.py` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "capture_zoo.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("capture_zoo", None)


def build(name: str, cut: str = "stem", **options: Any) -> SplitModel:
    return build_model(f"python:capture_zoo:{name}", options, data=DATA, seed=0, cut=cut)


def refusal(name: str, cut: str = "stem", **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        build(name, cut, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and not sentence.endswith(".")
    return sentence


def original(name: str, **options: Any) -> nn.Module:
    """The user's module with the weights that it has in `build`."""
    module: nn.Module = getattr(sys.modules["capture_zoo"], name)(**options)
    return module


def both(split: SplitModel, module: nn.Module) -> nn.Module:
    """A module of the user's own class with the split model's weights."""
    module.load_state_dict({**split.front.state_dict(), **split.back.state_dict()}, strict=False)
    return module


# --- a model stays as it was


@pytest.mark.parametrize("cut", ["0", "1"])
def test_building_and_tracing_leave_parameters_buffers_modes_and_generators_as_they_were(cut: str) -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    draws = [random.getstate(), str(np.random.get_state()), torch.get_rng_state()]
    split = build("normed", cut)
    (made,) = sys.modules["capture_zoo"].MADE
    assert [module.training for module in made.modules()] == [True] * 5 + [False]
    assert made[0][0].mean.tolist() == [300.0] * 8 and made[0][0].var.tolist() == [2500.0] * 8
    state = split.front.state_dict()
    assert state["0.0.mean"].tolist() == [300.0] * 8
    assert dict(split.front.named_buffers())["0.0.var"].tolist() == [2500.0] * 8
    assert draws[:2] == [random.getstate(), str(np.random.get_state())] and torch.equal(draws[2], torch.get_rng_state())  # type: ignore[arg-type]
    for name, value in made.named_parameters():
        assert torch.equal(value, {**state, **split.back.state_dict()}[name])
    original_state = {name: value.clone() for name, value in made.state_dict().items()}
    split.front.get_parameter("0.1.weight").data.zero_()
    assert all(torch.equal(value, original_state[name]) for name, value in made.state_dict().items())


def test_weights_do_not_depend_on_what_the_model_was_tried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    for rows in (16, 7):
        monkeypatch.setattr("heron_server.models.probes._MOST", rows)
        heads.append(build("Base").auxiliary_head.state_dict())
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


# --- contexts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoGrad", "torch.no_grad"),
        ("Decorated", "torch.no_grad"),
        ("Inference", "torch.inference_mode"),
        ("SetGrad", "set_grad_enabled"),
        ("Autocast", "torch.autocast (cpu)"),
    ],
)
def test_contexts_of_the_models_own_forward_are_refused_by_name(name: str, words: str) -> None:
    sentence = refusal(name)
    assert words in sentence and "which a cut model would lose" in sentence and "capture_zoo.py, line" in sentence
    assert ("requires_grad_(False)" in sentence) is ("grad" in words)


def test_a_submodule_that_computes_without_gradients_stays_whole_and_is_not_trained_behind_the_cut_nor_taken_in_front() -> None:
    split = build("no_grad_inside")
    split.back.train()(torch.randn(4, 6)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in split.back.named_parameters()}
    assert gradients["body.inner.weight"] is None and gradients["head.weight"] is not None
    sentence = refusal("no_grad_inside", "body")
    assert "body.inner.weight in front, which gets no gradient" in sentence


def test_weights_in_front_that_get_no_gradient_are_refused_by_name() -> None:
    sentence = refusal("Detached", "body")
    assert "the weight stem.weight in front, which gets no gradient" in sentence
    assert "stem.weight" in refusal("Base", head="python:capture_zoo:no_gradient_head")


# --- hooks, modes, chance, state


@pytest.mark.parametrize("kind", ["forward", "pre", "backward"])
def test_hooks_on_the_root_are_refused_and_those_on_a_flattened_submodule_keep_acting(kind: str) -> None:
    sentence = refusal("hooked", where="root", kind=kind)
    assert "it has a hook of its own" in sentence
    split = build("hooked", where="body", kind=kind)
    x = torch.randn(3, 8)
    module = both(split, original("hooked", where="body", kind=kind))
    torch.testing.assert_close(split.back(split.front(x)), module(x))
    assert "lies inside 'body', which stays whole because it has a hook" in refusal("hooked", "body.0", where="body", kind=kind)


def test_a_backward_hook_scales_the_gradient_in_front_of_a_back_as_in_the_model() -> None:
    split = build("hooked", where="body", kind="backward")
    module = both(split, original("hooked", where="body", kind="backward"))
    x = torch.randn(3, 8)
    module(x).sum().backward()
    z = split.front(x)
    (gradient,) = torch.autograd.grad(split.back(z).sum(), z)
    expected = module.stem.bias.grad  # type: ignore[union-attr]
    torch.testing.assert_close(gradient.sum(0), expected)


def test_a_hook_on_a_weight_is_refused_by_its_name() -> None:
    assert "has a hook on the weight head.weight" in refusal("weight_hook")


def test_what_the_models_own_train_keeps_in_evaluation_mode_or_freezes_stays_so() -> None:
    split = build("Overrides")
    before = split.back.state_dict()["body.1.running_mean"].clone()
    z = torch.randn(16, 6) + 5
    trained = split.back.train()(z)
    assert torch.equal(split.back.state_dict()["body.1.running_mean"], before)
    torch.testing.assert_close(trained, split.back.eval()(z))
    assert not split.back.get_parameter("head.bias").requires_grad and split.back.get_parameter("head.weight").requires_grad


def test_what_is_returned_in_evaluation_mode_stays_in_it() -> None:
    split, z = build("returned_in_evaluation_mode"), torch.randn(16, 6)
    torch.testing.assert_close(split.back.train()(z), split.back.eval()(z))


@pytest.mark.parametrize(
    ("name", "reason"), [("chance", "draws random numbers"), ("stateful", "changes mean"), ("average", "changes level")]
)
def test_submodules_that_draw_or_keep_values_stay_whole(name: str, reason: str) -> None:
    sentence = refusal(name, "body.inner")
    assert "lies inside 'body', which stays whole" in sentence and reason in sentence
    if name == "chance":
        assert build(name).back.get_submodule("body") is not None


def test_values_that_the_models_own_forward_keeps_are_refused_where_they_matter() -> None:
    assert "does not compute what it computes as a whole" in refusal("OwnAverage")


def test_layers_that_only_a_first_forward_completes_are_taken() -> None:
    assert [tuple(p.shape) for p in build("Lazy").back.get_submodule("body").parameters()] == [(6, 6), (6,)]


# --- arguments of forward


@pytest.mark.parametrize("name", ["Kwargs", "Args", "Containers"])
def test_arguments_with_defaults_of_any_kind_and_empty_ones_are_left_to_python(name: str) -> None:
    split, x = build(name), torch.randn(4, 8)
    torch.testing.assert_close(split.back.eval()(split.front(x)), both(split, original(name))(x))
