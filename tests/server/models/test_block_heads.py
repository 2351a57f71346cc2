"""Losses within a front: each trains its own blocks and no others, by every kind of front, and blocks that are none are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.algorithm.algorithm import LocalLosses
from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.block_heads import BlockHeads
from heron_server.models.families.local_losses import with_block_heads
from heron_server.models.recomputation import recomputed_blocks
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, trained_parameters
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export
from heron_server.programs.parity import CONVOLUTION_GRADIENT_TOLERANCE, check_outputs
from tests.harness.transformers import build, three_classes

DATA = DataSpecification("digits", (1, 8, 8), num_classes=10)
BLOCKS, PAIRS = LocalLosses.BLOCKS, LocalLosses.PAIRS


def cnn(*widths: int) -> SplitModel:
    return build_model("cnn", {"front_widths": widths, "front_strides": (1,) * len(widths)}, data=DATA, seed=0)


def places(model: SplitModel) -> tuple[str, ...]:
    assert isinstance(model.auxiliary_head, BlockHeads)
    return model.auxiliary_head.places


@pytest.mark.parametrize(
    ("losses", "blocks", "expected"),
    [(BLOCKS, (), ("0", "1", "2", "3")), (PAIRS, (), ("0", "2")), (BLOCKS, ("1", "3"), ("1", "3")), (BLOCKS, ("1.2",), ("1.2",))],
)
def test_losses_are_where_they_were_asked_for(losses: LocalLosses, blocks: tuple[str, ...], expected: tuple[str, ...]) -> None:
    model = cnn(2, 3, 4, 3, 2)
    split = with_block_heads(model, losses, blocks=blocks, seed=0)
    assert places(split) == expected and split.name != model.name
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(split.auxiliary_head(split.front(x)), model.auxiliary_head(model.front(x))), "at the cut nothing changes"
    again = with_block_heads(cnn(2, 3, 4, 3, 2), losses, blocks=blocks, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(split.auxiliary_head.parameters(), again.auxiliary_head.parameters(), strict=True))


def test_residual_blocks_and_stages_are_blocks() -> None:
    data = DataSpecification("images", (3, 16, 16), num_classes=5)
    model = build_model("resnet", {"width": 8, "groups": 2, "blocks": (2, 2), "front_blocks": 3}, data=data, seed=0)
    assert len(places(with_block_heads(model, BLOCKS, blocks=(), seed=0))) == 2


def test_the_gradient_of_every_loss_ends_at_its_own_blocks() -> None:
    """The naive twin: block after block, each from the activations of the one before as numbers."""
    model = with_block_heads(cnn(2, 3, 2), BLOCKS, blocks=(), seed=0)
    heads: Any = model.auxiliary_head
    function = compile_function(model, ProgramKind.GRADIENT, micro_batch=4)
    x, y = (torch.from_numpy(a) for a in model.random_batch(4, np.random.Generator(np.random.Philox(key=3))))
    outputs = dict(zip(function.output_names, function.module(x, y, *function.arguments[2:]), strict=True))
    found = [value for name, value in outputs.items() if name.startswith("gradients.")]
    h, losses = x, []
    for block, head in zip(model.front.children(), [*heads.inner, heads.final], strict=True):
        h = block(h.detach())
        losses.append(model.sample_losses(head(h), y))
    parameters = [p for part in (model.front, heads) for _, p in trained_parameters(part)]
    expected = torch.autograd.grad(sum(loss.sum() for loss in losses), parameters)
    for ours, twin in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["losses"], losses[-1].detach())
    torch.testing.assert_close(outputs["activations"], h.detach())


def test_the_program_is_the_function(tmp_path: Path) -> None:
    model = with_block_heads(cnn(2, 3, 2), BLOCKS, blocks=(), seed=0)
    program = export(compile_function(model, ProgramKind.GRADIENT, micro_batch=2))
    assert check_outputs(model, ProgramKind.GRADIENT, program=program, micro_batch=2, seed=1) <= 10 * CONVOLUTION_GRADIENT_TOLERANCE


def test_the_program_of_blocks_that_run_twice_is_the_function(tmp_path: Path) -> None:
    model = with_block_heads(build(tmp_path, "bert", three_classes(6), cut="2"), BLOCKS, blocks=(), seed=0)
    assert places(model) == ("blocks.layers.0",) and recomputed_blocks(model.front) == [model.front.get_submodule("blocks.layers.0")]
    program = export(compile_function(model, ProgramKind.GRADIENT, micro_batch=2))
    assert check_outputs(model, ProgramKind.GRADIENT, program=program, micro_batch=2, seed=1) < 1e-5


@pytest.mark.parametrize(
    ("widths", "blocks", "words"),
    [
        ((2, 2), ("5",), ["no block '5'", "0, 1"]),
        ((2,), (), ["has 1 blocks", "deeper cut"]),
        ((2, 2, 2), ("1", "0"), ["in order", "1, 0"]),
    ],
)
def test_blocks_that_are_none_are_named(widths: tuple[int, ...], blocks: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        with_block_heads(cnn(*widths), BLOCKS, blocks=blocks, seed=0)
    assert all(word in str(caught.value) for word in words)


def test_pairs_of_two_blocks_have_no_loss_within_them() -> None:
    with pytest.raises(ConfigurationError, match="has 2 blocks, too few"):
        with_block_heads(cnn(2, 2), PAIRS, blocks=(), seed=0)
    assert places(with_block_heads(cnn(2, 2), PAIRS, blocks=("0",), seed=0)) == ("0",)


def test_without_losses_within_it_a_model_is_left_alone() -> None:
    model = cnn(2, 2)
    assert with_block_heads(model, LocalLosses.END, blocks=(), seed=0) is model
    with pytest.raises(ConfigurationError, match="local_losses is end"):
        with_block_heads(model, LocalLosses.END, blocks=("0",), seed=0)
