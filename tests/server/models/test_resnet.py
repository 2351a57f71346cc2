"""ResNet-18, -34 and -50: the published sizes, places by name, and exact programs of every depth, stem and norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.batch_norm import FrozenBatchNorm2d
from heron_server.models.registry import build_model
from heron_server.programs.export import ProgramCache
from heron_server.programs.parity import check_outputs

CIFAR = DataSpecification("cifar", (3, 32, 32), num_classes=10)
IMAGENET = DataSpecification("imagenet", (3, 224, 224), num_classes=1000)


@pytest.mark.parametrize(("depth", "weights"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
@pytest.mark.parametrize("norm", ["group", "batch-frozen"])
def test_every_depth_has_as_many_weights_as_published(depth: int, weights: int, norm: str) -> None:
    with FakeTensorMode():
        model = build_model("resnet", {"depth": str(depth), "stem": "imagenet", "norm": norm}, data=IMAGENET, seed=0, cut="layer2")
        assert sum(p.numel() for part in (model.front, model.back) for p in part.parameters()) == weights
        assert model.to_spec().cut.shape == ((512 if depth == 50 else 128), 28, 28)
        assert [tuple(p.shape) for p in model.auxiliary_head.parameters()] == [(1000, (8192 if depth == 50 else 2048)), (1000,)]


def test_the_defaults_are_the_network_that_they_were() -> None:
    plain, written = (
        build_model("resnet", options, data=CIFAR, seed=0) for options in ({}, {"depth": 18, "stem": "cifar", "norm": "group"})
    )
    assert plain.name == written.name
    assert [name for name, _ in plain.front.named_parameters()][:4] == ["0.weight", "1.weight", "1.bias", "3.convolution1.weight"]
    assert (
        sum(p.numel() for p in plain.front.parameters()) == 75_840 and sum(p.numel() for p in plain.auxiliary_head.parameters()) == 655_370
    )


@pytest.mark.parametrize(
    ("cut", "front_blocks"), [("stem", 0), ("layer1.0", 1), ("layer1", 2), ("layer1.1", 2), ("layer2.0", 3), ("layer4", 8), ("layer4.1", 8)]
)
def test_a_place_is_so_many_blocks(cut: str, front_blocks: int) -> None:
    with FakeTensorMode():
        named = build_model("resnet", {"width": 8}, data=CIFAR, seed=0, cut=cut)
        counted = build_model("resnet", {"width": 8, "front_blocks": front_blocks}, data=CIFAR, seed=0)
        assert named.name == counted.name and len(named.front) == len(counted.front) == 3 + front_blocks  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "options", "cut", "words"),
    [
        ("resnet", {}, "layer5", ["'layer5'", "stem, layer1.0, layer1, layer2.0"]),
        ("resnet", {"front_blocks": 1}, "layer1", ["front_blocks=2", "front_blocks=1", "give one of them"]),
        ("resnet", {"depth": 20}, None, ["18, 34, 50, not 20"]),
        ("resnet", {"norm": "layer"}, None, ["batch-frozen"]),
        ("cnn", {}, "layer1", ["front_widths", "leave --cut out"]),
    ],
)
def test_what_makes_no_model_is_refused(family: str, options: dict[str, Any], cut: str | None, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_model(family, options, data=CIFAR, seed=0, cut=cut)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_frozen_statistics_are_constants() -> None:
    model = build_model("resnet", {"width": 8, "norm": "batch-frozen", "blocks": [1, 1]}, data=CIFAR, seed=0)
    norms = [m for part in (model.front, model.back) for m in part.modules() if isinstance(m, FrozenBatchNorm2d)]
    model.front.train()
    model.back.train()
    z = model.front(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(model.front.eval()(torch.zeros(2, 3, 32, 32)), model.front.train()(torch.zeros(2, 3, 32, 32)))
    model.back(z)
    assert len(norms) == 6 and all(norm.running_mean is not None and not norm.running_mean.any() for norm in norms)


EXACT: dict[str, tuple[dict[str, Any], str]] = {
    "18, ImageNet stem, frozen batch normalisation": (
        {"depth": 18, "stem": "imagenet", "norm": "batch-frozen", "blocks": [1, 1]},
        "layer2",
    ),
    "34, CIFAR stem, groups": ({"depth": 34}, "layer1.0"),
    "50, CIFAR stem, groups": ({"depth": 50, "blocks": [1]}, "layer1"),
}


@pytest.mark.parametrize("kind", [ProgramKind.LOSS, ProgramKind.GRADIENT])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("34") else name for name in EXACT])
def test_programs_equal_the_network(name: str, kind: ProgramKind, program_cache: ProgramCache) -> None:
    options, cut = EXACT[name]
    model = build_model(
        "resnet", {"width": 4, "groups": 2, **options}, data=DataSpecification("small", (3, 16, 16), num_classes=5), seed=0, cut=cut
    )
    check_outputs(model, kind, program=program_cache.program(model, kind, micro_batch=1), micro_batch=1, seed=0)
