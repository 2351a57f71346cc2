"""Which weights of a front move: the right ones by every choice, and a choice of nothing is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.models.train_weights import check_train_weights, is_norm, with_train_weights

DATA = DataSpecification("digits", (1, 8, 8), num_classes=10)


def cnn(**options: Any) -> SplitModel:
    return build_model("cnn", {"front_widths": (4, 4, 2), "front_strides": (1, 2, 1), **options}, data=DATA, seed=0)


def names(model: SplitModel) -> list[str]:
    return [spec.name for spec in model.to_spec().client_model]


@pytest.mark.parametrize(
    ("chosen", "layers"),
    [
        ("all", {"0.0", "0.1", "1.0", "1.1", "2.0", "2.1"}),
        ("norms", {"0.1", "1.1", "2.1"}),
        ("last", {"2.0", "2.1"}),
        ("norms+last", {"0.1", "1.1", "2.0", "2.1"}),
        ("last-block", {"2.0", "2.1"}),
        ("norms+last-block", {"0.1", "1.1", "2.0", "2.1"}),
        (r"1\.", {"1.0", "1.1"}),
        (r"0\.0|2\.1", {"0.0", "2.1"}),
    ],
)
def test_a_choice_trains_its_layers_and_freezes_the_others(chosen: str, layers: set[str]) -> None:
    whole, model = cnn(), with_train_weights(cnn(), chosen)
    assert {name.rpartition(".")[0] for name in names(model)} == layers
    spec = model.to_spec()
    kept = {spec.name for spec in spec.base}
    assert kept == set(names(whole)) - set(names(model)), "the rest lies in the base, which is sent once"
    assert [s.name for s in spec.auxiliary_head] == [s.name for s in whole.to_spec().auxiliary_head]
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model.front(x), whole.front(x))
    assert (model.name == whole.name) == (chosen == "all")


@pytest.mark.parametrize("chosen", ["conv", r"0\.0\.weightx", "2.1.running"])
def test_a_choice_of_nothing_is_named_with_what_there_is(chosen: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        with_train_weights(cnn(), chosen)
    assert chosen in str(caught.value) and "matches no weight" in str(caught.value) and "0.0.weight" in str(caught.value)


def test_a_choice_of_frozen_weights_alone_is_named() -> None:
    model = cnn()
    for name, parameter in model.front.named_parameters():
        parameter.requires_grad_(name.startswith("2.0"))
    for chosen in ("norms", r"0\.0"):
        with pytest.raises(ConfigurationError, match="keeps frozen"):
            with_train_weights(model, chosen)
    assert names(with_train_weights(model, "last")) == names(model)


def test_a_regular_expression_that_is_none_is_refused() -> None:
    for chosen in ("(", "*a", "[z-a]"):
        with pytest.raises(ConfigurationError, match="no regular expression"):
            check_train_weights(chosen)
    check_train_weights("norms+last")


def test_norms_are_known_by_kind_and_by_name() -> None:
    class LlamaRMSNorm(nn.Module): ...

    assert all(map(is_norm, [nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.BatchNorm2d(2), nn.InstanceNorm1d(2), nn.RMSNorm(2), LlamaRMSNorm()]))
    assert not any(map(is_norm, [nn.Linear(1, 1), nn.Conv2d(1, 1, 1), nn.Sequential()]))


def test_the_last_block_is_the_one_that_is_found_or_what_is_behind_a_named_place() -> None:
    data = DataSpecification("images", (3, 16, 16), num_classes=5)
    residual = build_model("resnet", {"width": 8, "groups": 2, "blocks": (1, 1), "front_blocks": 2}, data=data, seed=0)
    last = names(with_train_weights(residual, "last-block"))
    assert {name.partition(".")[0] for name in last} == {"4"} and len(last) == 9, "two convolutions, a shortcut, and the norms of all three"
    assert {name.rpartition(".")[0] for name in names(with_train_weights(cnn(), "last-block", blocks=("0",)))} == {
        "1.0",
        "1.1",
        "2.0",
        "2.1",
    }
    inside = with_train_weights(cnn(), "last-block", blocks=("0", "2.0"))
    assert names(inside) == ["2.1.weight", "2.1.bias"] and inside.name != with_train_weights(cnn(), "last-block").name


@pytest.mark.parametrize(
    ("chosen", "exact", "blocks", "apart"),
    [
        ("norms+last-block", "last-block", (), ["0.1.weight", "0.1.bias", "1.1.weight", "1.1.bias"]),
        ("all", "last-block", ("0",), ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]),
        ("norms", r"2\.1\.bias", (), ["0.1.weight", "0.1.bias", "1.1.weight", "1.1.bias", "2.1.weight"]),
        ("all", r"[12]\.", (), ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]),
    ],
)
def test_what_moves_by_differences_comes_before_what_moves_by_gradients(
    chosen: str, exact: str, blocks: tuple[str, ...], apart: list[str]
) -> None:
    model = with_train_weights(cnn(), chosen, exact=exact, blocks=blocks)
    assert names(model)[: model.to_spec().without_gradient] == apart and len(names(model)) > len(apart)
    assert model.name != with_train_weights(cnn(), chosen, blocks=blocks).name, "its programs are others"


@pytest.mark.parametrize(
    ("chosen", "exact", "blocks", "words"),
    [
        ("norms", r"2\.0", (), [r"exact_weights=2\.0", "train_weights=norms", "none of the weights", "0.1.weight"]),
        ("all", "nothing", (), ["exact_weights=nothing", "none of the weights"]),
        ("last-block", "last-block", (), ["exact_weights=last-block", "train_weights=last-block", "estimator=hybrid", "last-exact"]),
        ("norms+last-block", "all", (), ["exact_weights=all", "train_weights=norms+last-block", "estimator=hybrid"]),
        ("all", r"1\.", (), [r"exact_weights=1\.", "train_weights=all", "'2.0.weight'", "last-block"]),
        ("norms+last-block", "last-block", ("7",), ["no block '7'", "0, 1, 2"]),
        ("last-block", "none", ("2",), ["behind the block '2'", "no weight that trains", "earlier one"]),
    ],
)
def test_weights_that_cannot_be_set_apart_are_named_with_both_options(
    chosen: str, exact: str, blocks: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        with_train_weights(cnn(), chosen, exact=exact, blocks=blocks)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_front_without_blocks_is_named() -> None:
    model = dataclasses.replace(cnn(), front=nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()))
    with pytest.raises(ConfigurationError, match=r"no blocks that can be found.*blocks.*last"):
        with_train_weights(model, "last-block")
