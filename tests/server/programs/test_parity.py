"""The gate before publishing: tampered programs and finite differences that miss the derivative are refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import heron_server.programs.difference_gate as difference_gate_module
import heron_server.programs.export as export_module
from heron_common.algorithm.algorithm import Algorithm, DirectionScale
from heron_common.algorithm.presets import preset
from heron_common.errors import HeronError, ParityError
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.programs.compile import compile_function
from heron_server.programs.difference_gate import DIFFERENCE_TOLERANCE, check_difference, difference_error
from heron_server.programs.export import ProgramCache, export
from heron_server.programs.parity import TOLERANCE, check_outputs
from heron_server.programs.publish import needed_programs, publish, scales_in_round, scales_of

MICRO_BATCH = 2


def algorithm(name: str = "heron", warmup_rounds: int = 0, **changes: Any) -> Algorithm:
    row = preset(name)
    groups = {"direction_groups": 1 if name in ("heron-paper", "frozen") else 2}
    plan = dataclasses.replace(row.plan, **{"batch_size": 4, "micro_batch": MICRO_BATCH, "local_steps": 2, **groups, **changes})
    return dataclasses.replace(row, plan=plan, warmup_rounds=warmup_rounds)


def replaced(program: bytes, old: str, new: str) -> bytes:
    proto = onnx.load_from_string(program)
    nodes = [node for node in proto.graph.node if node.op_type == old]
    assert nodes
    for node in nodes:
        node.op_type = new
    data: bytes = proto.SerializeToString()
    return data


@pytest.mark.parametrize("kind", list(ProgramKind))
def test_an_honest_program_passes_with_a_small_error(tiny_model: SplitModel, kind: ProgramKind, program_cache: ProgramCache) -> None:
    assert (
        check_outputs(
            tiny_model, kind, program=program_cache.program(tiny_model, kind, micro_batch=MICRO_BATCH), micro_batch=MICRO_BATCH, seed=1
        )
        <= TOLERANCE
    )


@pytest.mark.parametrize("kind", list(ProgramKind))
def test_a_tampered_program_is_refused(tiny_model: SplitModel, kind: ProgramKind, program_cache: ProgramCache) -> None:
    tampered = replaced(program_cache.program(tiny_model, kind, micro_batch=MICRO_BATCH), "Relu", "Sigmoid")
    with pytest.raises(ParityError, match="not published"):
        check_outputs(tiny_model, kind, program=tampered, micro_batch=MICRO_BATCH, seed=1)


BY_DIRECTION = (ProgramKind.LOSS, ProgramKind.FRONT, ProgramKind.SURROGATE)


@pytest.mark.parametrize("kind", BY_DIRECTION)
def test_a_program_of_several_directions_is_the_model_at_each_of_their_weights(
    tiny_model: SplitModel, kind: ProgramKind, program_cache: ProgramCache
) -> None:
    program = program_cache.program(tiny_model, kind, micro_batch=6, directions=3)
    assert check_outputs(tiny_model, kind, program=program, micro_batch=6, seed=1, directions=3) <= TOLERANCE
    with pytest.raises(ParityError, match="not published"):
        check_outputs(tiny_model, kind, program=replaced(program, "Relu", "Sigmoid"), micro_batch=6, seed=1, directions=3)


def test_a_program_that_takes_one_directions_weights_for_all_is_refused(tiny_model: SplitModel) -> None:
    function = compile_function(tiny_model, ProgramKind.FRONT, micro_batch=6, directions=3)

    class FirstRow(torch.nn.Module):
        def forward(self, x: torch.Tensor, weights: torch.Tensor, base: list[torch.Tensor]) -> Any:
            return function.module(x, weights[:1].expand(3, -1), base)

    lying = export(dataclasses.replace(function, module=FirstRow()))
    with pytest.raises(ParityError, match="not published"):
        check_outputs(tiny_model, ProgramKind.FRONT, program=lying, micro_batch=6, seed=1, directions=3)


def test_the_program_of_another_model_with_the_same_inputs_is_refused(tiny_model: SplitModel, program_cache: ProgramCache) -> None:
    other = dataclasses.replace(tiny_model, name="other", auxiliary_head=torch.nn.Sequential(tiny_model.auxiliary_head, torch.nn.Tanh()))
    program = program_cache.program(other, ProgramKind.LOSS, micro_batch=MICRO_BATCH)
    assert check_outputs(other, ProgramKind.LOSS, program=program, micro_batch=MICRO_BATCH, seed=1) <= TOLERANCE
    with pytest.raises(ParityError, match="'losses'"):
        check_outputs(tiny_model, ProgramKind.LOSS, program=program, micro_batch=MICRO_BATCH, seed=1)


def test_outputs_that_are_not_numbers_are_refused(tiny_model: SplitModel, program_cache: ProgramCache) -> None:
    program = replaced(program_cache.program(tiny_model, ProgramKind.FRONT, micro_batch=MICRO_BATCH), "Relu", "Log")
    with pytest.raises(ParityError), np.errstate(all="ignore"):
        check_outputs(tiny_model, ProgramKind.FRONT, program=program, micro_batch=MICRO_BATCH, seed=1)


@pytest.mark.parametrize(
    ("name", "difference"), [("heron", "forward"), ("heron", "central"), ("heron-paper", "forward"), ("heron-server-loss", "central")]
)
def test_a_small_radius_passes_and_a_large_one_is_refused_naming_one_that_passes(
    tiny_model: SplitModel, program_cache: ProgramCache, name: str, difference: str
) -> None:
    a = algorithm(name, difference=type(preset(name).plan.difference)(difference))
    program = program_cache.program(tiny_model, needed_programs(a)[0], micro_batch=MICRO_BATCH)
    scales = scales_of(tiny_model, a)
    assert check_difference(tiny_model, a.plan, program=program, scales=scales, seed=3) <= DIFFERENCE_TOLERANCE
    coarse = dataclasses.replace(a.plan, smoothing_radius=1.0)
    with pytest.raises(ParityError) as caught:
        check_difference(tiny_model, coarse, program=program, scales=scales, seed=3)
    assert "smoothing_radius 1 " in str(caught.value)
    (named,) = re.findall(r"use smoothing_radius ([\d.e-]+)", str(caught.value))
    better = dataclasses.replace(coarse, smoothing_radius=float(named))
    assert check_difference(tiny_model, better, program=program, scales=scales, seed=3) <= DIFFERENCE_TOLERANCE
    worse = dataclasses.replace(coarse, smoothing_radius=2 * float(named))
    assert difference_error(tiny_model, worse, program=program, scales=scales, seed=3) > DIFFERENCE_TOLERANCE, (
        "the largest that passes is named"
    )


def test_where_forwards_are_costly_the_gate_still_tells_a_small_radius_from_a_large_one(
    tiny_model: SplitModel, program_cache: ProgramCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference_gate_module, "COSTLY_FLOPS", 0)
    monkeypatch.setattr(difference_gate_module, "GRADIENT_ROWS", 3)
    a = algorithm("heron-paper")
    program = program_cache.program(tiny_model, ProgramKind.LOSS, micro_batch=MICRO_BATCH)
    scales = scales_of(tiny_model, a)
    assert difference_error(tiny_model, a.plan, program=program, scales=scales, seed=3) <= DIFFERENCE_TOLERANCE
    coarse = dataclasses.replace(a.plan, smoothing_radius=1.0)
    assert difference_error(tiny_model, coarse, program=program, scales=scales, seed=3) > DIFFERENCE_TOLERANCE


def test_the_gate_leaves_the_model_as_it_was(tiny_model: SplitModel, program_cache: ProgramCache) -> None:
    parts = (tiny_model.front, tiny_model.auxiliary_head, tiny_model.back)
    before = [p.detach().clone() for part in parts for p in part.parameters()]
    publish(algorithm(), tiny_model, cache=program_cache, seed=0)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, [p for part in parts for p in part.parameters()], strict=True))


@pytest.mark.parametrize(
    ("name", "warmup", "kinds"),
    [
        ("heron", 0, {ProgramKind.LOSS}),
        ("heron", 1, {ProgramKind.LOSS, ProgramKind.FRONT}),
        ("heron-paper", 0, {ProgramKind.LOSS}),
        ("heron-server-loss", 1, {ProgramKind.FRONT}),
        ("frozen", 0, {ProgramKind.FRONT}),
    ],
)
def test_clients_get_the_programs_their_plans_need(
    tiny_model: SplitModel, program_cache: ProgramCache, name: str, warmup: int, kinds: set[ProgramKind]
) -> None:
    a = algorithm(name, warmup)
    published, report = publish(a, tiny_model, cache=program_cache, seed=0)
    assert {p.reference.kind for p in published} == kinds
    assert all(p.reference.blob.size_bytes == len(p.data) and p.reference.micro_batch == MICRO_BATCH for p in published)
    assert report.output_error <= TOLERANCE
    assert (report.difference_error is None) == (name == "frozen")


def test_nothing_is_published_when_a_program_in_the_cache_is_not_the_models(tiny_model: SplitModel, tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "export", lambda _function: b"cut short")
        cache.program(tiny_model, ProgramKind.LOSS, micro_batch=MICRO_BATCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "export", lambda _function: b"exported anew")
        with pytest.raises(HeronError):
            publish(algorithm(), tiny_model, cache=cache, seed=0)


@pytest.mark.parametrize("scale", ["unit", "tensor_rms", "global_rms"])
@pytest.mark.parametrize("name", ["heron", "heron-paper"])
def test_direction_scales_are_root_mean_squares_with_a_floor(tiny_model: SplitModel, name: str, scale: str) -> None:
    a = dataclasses.replace(algorithm(name), direction_scale=type(preset(name).direction_scale)(scale), scale_floor=1e-2)
    tensors = [p.detach().double() for p in tiny_model.front.parameters()]
    if name == "heron-paper":
        tensors += [p.detach().double() for p in tiny_model.auxiliary_head.parameters()]
    everything = torch.cat([t.reshape(-1) for t in tensors])
    want = {
        "unit": [1.0] * len(tensors),
        "tensor_rms": [max(float(t.square().mean().sqrt()), 1e-2) for t in tensors],
        "global_rms": [max(float(everything.square().mean().sqrt()), 1e-2)] * len(tensors),
    }[scale]
    np.testing.assert_allclose(scales_of(tiny_model, a), want, rtol=1e-12)


def test_an_error_is_measured_against_the_largest_value(program_cache: ProgramCache) -> None:
    """A model whose outputs are large passes although its absolute error is."""
    model = build_model(
        "cnn", {"front_widths": [2], "front_strides": [2], "hidden": 4}, data=DataSpecification("1x4x4:3", (1, 4, 4), num_classes=3), seed=0
    )
    with torch.no_grad():
        for parameter in model.front.parameters():
            parameter.mul_(1e4)
    program = program_cache.program(model, ProgramKind.FRONT, micro_batch=MICRO_BATCH)
    assert check_outputs(model, ProgramKind.FRONT, program=program, micro_batch=MICRO_BATCH, seed=1) <= TOLERANCE


def test_scales_in_rounds_are_those_of_the_first_weights(tiny_model: SplitModel) -> None:
    """Blockwise scales take turns over layers; others stay as they were, whatever the weights became."""
    spec = tiny_model.to_spec()
    plain = dataclasses.replace(algorithm("heron"), direction_scale=DirectionScale.GLOBAL_RMS)
    blocks = dataclasses.replace(plain, direction_scale=DirectionScale.BLOCK_RMS)
    anchor = scales_of(tiny_model, plain)
    assert all(np.array_equal(scales_in_round(anchor, spec, algorithm=plain, round_index=index), anchor) for index in range(5))
    turns = [scales_in_round(anchor, spec, algorithm=blocks, round_index=index) for index in range(len(anchor))]
    assert all(set(turn) <= {0.0, anchor[0]} and turn.max() > 0.0 for turn in turns)
    assert np.array_equal(np.max(turns, axis=0), anchor), "every tensor has its turn"
