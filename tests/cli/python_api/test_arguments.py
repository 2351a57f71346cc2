"""What a call of `heron.simulate` is told wrongly: everything at once, by the names of its arguments, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import heron
from heron_cli.python_api.data import given_data, specification_of_data
from heron_server.models.user.given_module import given_module, name_of
from tests.cli.python_api.handed_over import CLASSES, SIZE, build, load

X, Y = load()


def mistakes(*arguments: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(heron.HeronError) as caught:
        heron.simulate(*arguments, **options)
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)
    return caught.value.sentences


def test_all_mistakes_come_at_once_by_the_names_of_arguments() -> None:
    said = mistakes(
        build(), (X[:9], Y[:8]), cut="featurs", preset="hern", rounds=0, eval_data=(X.astype(complex), Y), partition="fair", local_stesp=4
    )
    assert said == (
        "the module has no submodule 'featurs': did you mean features?; it has features, features.0, features.1, rest, rest.0, rest.1, rest.2, rest.3",
        "data has 9 samples in x, but 8 labels in y: they must match",
        "eval_data should have x of numbers or strings, but has complex128: hand over arrays (x, y), a dataset, or the name of a data source",
        "unknown option 'local_stesp': did you mean local_steps?",
        *said[4:],
    )
    assert [sentence.partition(":")[0] for sentence in said[4:]] == ["preset", "rounds", "partition"]
    assert "heron" in said[4] and "greater than or equal to 1" in said[5]


@pytest.mark.parametrize(
    ("model", "data", "sentence"),
    [
        (
            build,
            (X, Y),
            "model is a torch.nn.Module, or a name like cnn or hf:FOLDER, not function: call it, and hand over what it returns",
        ),
        (nn.LazyLinear(3), (X, Y), r"lazy layers without weights \(bias, weight\): run it on a batch once"),
        ("cnn", (X,), "data should have x and y, but has 1 values"),
        ("cnn", 7, r"data should have arrays \(x, y\) or an object with __len__ and __getitem__, but has int"),
        ("cnn", (Y, Y), r"data has x of shape \[120\], a number a sample: give every sample a row"),
        ("cnn", "digts:train", "unknown data source 'digts:train'"),
        ("cnn", (np.array([["a"], ["b"]]), Y[:2]), "data holds text: say with data_spec what a sample is"),
        ("cnn", (X, np.stack([Y, Y], 1)), "data has 2 whole numbers for each y: give one class, floats"),
        ("object:Net:0123", (X, Y), "was handed over as an object from Python, and no command can build it: use heron.open_run"),
        ("cnn", "object:arrays:0123", "were handed over as objects from Python: hand them over again"),
    ],
)
def test_what_is_no_model_and_what_are_no_data_is_said_in_a_sentence(model: Any, data: Any, sentence: str, tmp_path: Path) -> None:
    spec = {"data_spec": f"{SIZE}:{CLASSES}"} if isinstance(data, str) else {}
    with pytest.raises(heron.HeronError, match=sentence):
        heron.simulate(model, data, cut="0" if isinstance(model, nn.Module) else None, run_dir=tmp_path / "run", **spec)
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_cut_is_asked_for_where_a_module_is_handed_over() -> None:
    assert mistakes(build(), (X, Y)) == (
        (
            "cut is missing: name the submodule behind which the module is cut, one of "
            "features, features.0, features.1, rest, rest.0, rest.1, rest.2, rest.3"
        ),
    )


def test_what_only_a_command_does_is_refused_with_what_to_do_instead() -> None:
    assert mistakes(build(), (X, Y), cut="features", plot="curves.png", log_level="debug") == (
        "log_level is an option of commands alone: leave it out, and set the level of the logger heron_server",
        "plot is an option of commands alone: leave it out, and use run.plot().save(path)",
    )


class Samples:
    """A dataset as torch has them."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(X[index]).requires_grad_(False), int(Y[index])


@pytest.mark.parametrize(
    ("data", "specification"),
    [
        ((X, Y), f"{SIZE}:{CLASSES}"),
        ([torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)], f"{SIZE}:{CLASSES}"),
        (Samples(), f"{SIZE}:{CLASSES}"),
        ((X.reshape(-1, 2, 3), Y), "2x3:3"),
        ((X, Y.astype(np.float32)), f"{SIZE}:regression:1"),
        ((X, np.zeros((120, 2))), f"{SIZE}:regression:2"),
        ((X, np.array(["low", "high"])[Y % 2]), f"{SIZE}:high,low"),
    ],
)
def test_what_data_look_like_is_found_out(data: Any, specification: str) -> None:
    source = given_data("data", data).source
    assert source is not None and source.num_examples == 120
    assert specification_of_data("data", source, None) == specification


def test_classes_are_as_many_as_the_module_gives_whatever_the_labels_hold() -> None:
    source = given_data("data", (X, np.minimum(Y, 1))).source
    assert source is not None
    assert (specification_of_data("data", source, None), specification_of_data("data", source, build())) == ("6:2", "6:3")


def test_the_name_of_data_and_of_a_module_says_which_they_are() -> None:
    assert given_data("data", (X, Y)).name == given_data("eval_data", (X.copy(), Y.copy())).name != given_data("data", (X + 1, Y)).name
    module = build()
    assert name_of(module) == name_of(build()) and name_of(module).startswith("object:Net:")
    others = [build() for _ in range(4)]
    with torch.no_grad():
        others[0].get_parameter("rest.0.weight")[0, 0] += 1e-3
    others[1].get_buffer("scale").fill_(3.0)
    others[2].get_submodule("rest.1").train()
    others[3].get_parameter("rest.0.bias").requires_grad_(False)
    assert len({name_of(other) for other in [module, *others]}) == 5
    with pytest.raises(heron.ConfigurationError, match=r"but the run began with .*: give the same module with its first weights"):
        given_module(name_of(module), others[0])
    given = given_module(name_of(module), module)
    assert given is not module and name_of(given) == name_of(module)
