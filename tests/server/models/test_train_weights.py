"""Which weights of a front move: the right ones by every choice, and a choice of nothing is named."""

from __future__ import annotations

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
