"""Split models: shapes, determinism, and that no sample sees another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.families.resnet_blocks import BasicBlock
from heron_server.models.registry import build_model, parse_model_options
from heron_server.models.split_model import SplitModel, flat_parameters, load_flat_parameters

DATA = DataSpecification("test", (1, 8, 8), num_classes=10)


def build(shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, seed: int = 0, **options: Any) -> SplitModel:
    return build_model("cnn", options, data=DataSpecification("test", shape, num_classes=classes), seed=seed)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (2, 1, 9)])
@pytest.mark.parametrize(("widths", "strides"), [((3,), (1,)), ((4, 2), (1, 2)), ((2, 3, 4), (2, 3, 1))])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("back_widths", [(), (3,)])
def test_shapes_at_the_cut_follow_from_strides(
    shape: tuple[int, int, int], widths: tuple[int, ...], strides: tuple[int, ...], kernel: int, back_widths: tuple[int, ...]
) -> None:
    model = build(shape, 7, front_widths=widths, front_strides=strides, kernel=kernel, back_widths=back_widths, hidden=6)
    height, width = shape[1:]
    for stride in strides:
        height, width = math.ceil(height / stride), math.ceil(width / stride)
    cut = (widths[-1], height, width)
    assert model.to_spec().cut.shape == cut
    x = torch.randn(5, *shape)
    z = model.front(x)
    assert z.shape == (5, *cut)
    assert model.back(z).shape == model.auxiliary_head(z).shape == (5, 7)
    assert model.sample_losses(model.back(z), torch.zeros(5, dtype=torch.int64)).shape == (5,)


def test_the_number_of_weights_is_that_of_convolutions_and_norms() -> None:
    spec = build(front_widths=(4, 2), front_strides=(1, 2), kernel=3).to_spec()
    convolutions = (1 * 4 * 9 + 4) + (4 * 2 * 9 + 2)
    norms = 2 * 4 + 2 * 2
    assert sum(t.num_elements for t in spec.client_model) == convolutions + norms
    assert sum(t.num_elements for t in spec.auxiliary_head) == 2 * 4 * 4 * 10 + 10


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    def weights(seed: int) -> np.ndarray[Any, Any]:
        model = build(seed=seed)
        return np.concatenate([flat_parameters(m) for m in (model.front, model.auxiliary_head, model.back)])

    np.testing.assert_array_equal(weights(3), weights(3))
    assert not np.array_equal(weights(3), weights(4))


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_samples_output_does_not_depend_on_the_others_in_its_batch() -> None:
    model = build(front_widths=(4, 2), front_strides=(1, 2), back_widths=(3,))
    for module in (model.front, model.back, model.auxiliary_head):
        module.train()
    x, other = torch.randn(4, 1, 8, 8), 100 * torch.randn(4, 1, 8, 8)
    other[1] = x[1]
    y = torch.tensor([0, 1, 2, 3])
    for last in (model.back, model.auxiliary_head):
        here = model.sample_losses(last(model.front(x)), y)[1]
        among_others = model.sample_losses(last(model.front(other)), y)[1]
        torch.testing.assert_close(among_others, here, rtol=1e-5, atol=1e-6)


def test_the_loss_is_cross_entropy_per_sample() -> None:
    logits, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    naive = [
        -math.log(math.exp(row[label]) / sum(math.exp(v) for v in row)) for row, label in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(build().sample_losses(logits, y), torch.tensor(naive), rtol=1e-5, atol=1e-6)


def test_flat_weights_round_trip_in_the_order_of_the_specification() -> None:
    model = build()
    flat = flat_parameters(model.front)
    assert [t.name for t in model.to_spec().client_model] == [name for name, _ in model.front.named_parameters()]
    changed = flat + np.arange(flat.size, dtype=np.float32)
    load_flat_parameters(model.front, changed)
    np.testing.assert_array_equal(flat_parameters(model.front), changed)
    offset = 0
    for parameter in model.front.parameters():
        np.testing.assert_array_equal(parameter.detach().numpy().reshape(-1), changed[offset : offset + parameter.numel()])
        offset += parameter.numel()
    with pytest.raises(ValueError, match=str(flat.size)):
        load_flat_parameters(model.front, flat[:-1])


def test_flat_weights_are_copies() -> None:
    model = build()
    before = flat_parameters(model.front)
    before[:] = 0
    assert flat_parameters(model.front).any()


def test_an_unknown_model_or_option_lists_what_exists() -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_model("transformer9", {}, data=DATA, seed=0)
    assert "transformer9" in str(caught.value) and "cnn" in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        build(colour="red", hidden="many")
    for part in ("colour", "hidden", "front_widths", "front_strides", "kernel", "back_widths"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"front_widths": []},
        {"front_widths": [4], "front_strides": [1, 2]},
        {"front_widths": [0], "front_strides": [1]},
        {"front_widths": [4], "front_strides": [0]},
        {"kernel": 2},
        {"kernel": 0},
        {"hidden": 0},
        {"back_widths": [0]},
    ],
)
def test_options_that_make_no_model_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="cnn"):
        build(**options)


def test_data_of_another_rank_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="channels x height x width"):
        build((8,))


def test_models_that_differ_have_names_that_differ() -> None:
    """The name is the key of the program cache."""
    models = [build(), build(hidden=5), build((1, 8, 9)), build(classes=9), build(kernel=5), build(front_widths=(4, 3))]
    assert len({model.name for model in models}) == len(models)
    assert build(hidden="128").name == build().name


def test_options_are_written_as_words() -> None:
    assert parse_model_options("front_widths=4,2 front_strides=1  hidden=9") == {
        "front_widths": ["4", "2"],
        "front_strides": ["1"],
        "hidden": "9",
    }
    assert parse_model_options("") == {}
    for text in ("hidden", "=3", "hidden=1 kernel"):
        with pytest.raises(ConfigurationError, match="KEY=VALUE"):
            parse_model_options(text)


IMAGES = DataSpecification("test", (3, 32, 32), num_classes=10)


def test_a_resnets_front_with_its_head_has_the_papers_weights() -> None:
    """64 channels, stem and one block: 1,728 + 2 * 36,864 in convolutions, 3 * 128 in norms; a linear head on 64 x 32 x 32."""
    spec = build_model("resnet", {"back": "linear"}, data=IMAGES, seed=0).to_spec()
    front, head = (sum(t.num_elements for t in part) for part in (spec.client_model, spec.auxiliary_head))
    assert (front, head, front + head) == (75_840, 655_370, 731_210)
    assert spec.cut.shape == (64, 32, 32)


def test_a_whole_resnet_has_the_known_number_of_weights() -> None:
    """ResNet-18 with a 3x3 stem has 11,173,962 weights for ten classes; norms have a weight and a bias a channel either way."""
    model = build_model("resnet", {}, data=IMAGES, seed=0)
    assert sum(p.numel() for part in (model.front, model.back) for p in part.parameters()) == 11_173_962


@pytest.mark.parametrize(
    ("front_blocks", "cut"), [(0, (4, 8, 8)), (1, (4, 8, 8)), (2, (8, 4, 4)), (3, (8, 4, 4)), (4, (16, 2, 2)), (5, (16, 2, 2))]
)
@pytest.mark.parametrize("back", ["resnet", "linear"])
def test_a_resnet_is_cut_behind_any_block(front_blocks: int, cut: tuple[int, ...], back: str) -> None:
    options = {"width": 4, "groups": 2, "blocks": [1, 2, 2], "front_blocks": front_blocks, "back": back}
    model = build_model("resnet", options, data=DataSpecification("test", (1, 8, 8), num_classes=7), seed=0)
    assert model.to_spec().cut.shape == cut
    z = model.front(torch.randn(3, 1, 8, 8))
    assert model.back(z).shape == model.auxiliary_head(z).shape == (3, 7)
    blocks = [m for part in (model.front, model.back) for m in part.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == (5 if back == "resnet" else front_blocks)


def test_a_basic_block_adds_what_it_was_given() -> None:
    """With a second norm of zeros the block is ReLU of its input."""
    block = BasicBlock(4, 4, stride=1, norm=lambda channels: nn.GroupNorm(2, channels))
    with torch.no_grad():
        block.norm2.weight.zero_()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize(
    "options",
    [
        {"width": 12},
        {"width": 0},
        {"groups": 0},
        {"blocks": []},
        {"blocks": [2, 0]},
        {"front_blocks": 9},
        {"front_blocks": -1},
        {"back": "x"},
    ],
)
def test_resnet_options_that_make_no_model_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="resnet"):
        build_model("resnet", options, data=IMAGES, seed=0)
    with pytest.raises(ConfigurationError, match="channels x height x width"):
        build_model("resnet", {}, data=DataSpecification("test", (8,), num_classes=10), seed=0)


def test_resnet_options_are_written_as_words() -> None:
    words = parse_model_options("width=8 groups=4 blocks=1,1 front_blocks=0 back=linear")
    plain = {"width": 8, "groups": 4, "blocks": [1, 1], "front_blocks": 0, "back": "linear"}
    assert build_model("resnet", words, data=IMAGES, seed=0).name == build_model("resnet", plain, data=IMAGES, seed=0).name
