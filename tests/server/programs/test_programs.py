"""Exported programs: equal to torch on any weights, without weights of their own, without traces of this machine."""

from __future__ import annotations

import getpass
import os
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import heron_server.programs.export as export_module
from heron_common.errors import HeronError, Interrupted, ProgramError
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, flat_parameters, load_flat_parameters
from heron_server.programs.compile import compile_function
from heron_server.programs.export import MAX_PROGRAM_BYTES, ProgramCache
from heron_server.programs.parity import load_runner

MICRO_BATCH = 2
KINDS = list(ProgramKind)


@pytest.fixture(params=KINDS, ids=[kind.value for kind in KINDS])
def kind(request: pytest.FixtureRequest) -> ProgramKind:
    return request.param


@pytest.fixture
def program(tiny_model: SplitModel, kind: ProgramKind, program_cache: ProgramCache) -> bytes:
    return program_cache.program(tiny_model, kind, micro_batch=MICRO_BATCH)


def randomise(model: SplitModel, seed: int) -> None:
    """Give the model weights that it did not have when it was exported."""
    generator = np.random.default_rng(seed)
    for part in (model.front, model.auxiliary_head):
        load_flat_parameters(part, generator.standard_normal(flat_parameters(part).size).astype(np.float32))


def feeds_of(model: SplitModel, kind: ProgramKind) -> dict[str, np.ndarray[Any, Any]]:
    """The program's inputs on the model's weights."""
    generator = np.random.default_rng(7)
    everything: dict[str, np.ndarray[Any, Any]] = {
        "x": generator.standard_normal((MICRO_BATCH, 1, 4, 4)).astype(np.float32),
        "y": np.array([2, 0]),
        "cut_gradient": generator.standard_normal((MICRO_BATCH, *model.to_spec().cut.shape)).astype(np.float32),
        **{f"client_model.{i}": p.detach().numpy() for i, p in enumerate(model.front.parameters())},
        **{f"auxiliary_head.{i}": p.detach().numpy() for i, p in enumerate(model.auxiliary_head.parameters())},
    }
    return {name: everything[name] for name in expected_names(model, kind)[0]}


def expected_names(model: SplitModel, kind: ProgramKind) -> tuple[list[str], list[str]]:
    """Inputs and outputs that the client binds."""
    front = [f"client_model.{i}" for i in range(len(model.to_spec().client_model))]
    head = [f"auxiliary_head.{i}" for i in range(len(model.to_spec().auxiliary_head))]
    gradients = [f"gradients.{name}" for name in front + head]
    return {
        ProgramKind.FRONT: (["x", *front], ["activations"]),
        ProgramKind.LOSS: (["x", "y", *front, *head], ["activations", "losses"]),
        ProgramKind.GRADIENT: (["x", "y", *front, *head], ["activations", "losses", *gradients]),
        ProgramKind.SURROGATE: (["x", "cut_gradient", *front], ["activations", "inner_products"]),
        ProgramKind.PULLBACK: (["x", "cut_gradient", *front], gradients[: len(front)]),
    }[kind]


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_program_equals_torch_on_weights_it_never_saw(
    tiny_model: SplitModel, kind: ProgramKind, program: bytes, seed: int | None
) -> None:
    if seed is not None:
        randomise(tiny_model, seed)
    feeds = feeds_of(tiny_model, kind)
    found = dict(zip(expected_names(tiny_model, kind)[1], load_runner(program)(feeds), strict=True))
    z = tiny_model.front(torch.from_numpy(feeds["x"]))
    wanted = {"activations": z}
    if "y" in feeds:
        wanted["losses"] = torch.nn.functional.cross_entropy(tiny_model.auxiliary_head(z), torch.from_numpy(feeds["y"]), reduction="none")
    else:
        wanted["inner_products"] = (z * torch.from_numpy(feeds.get("cut_gradient", np.ones(z.shape, np.float32)))).flatten(1).sum(1)
    total = wanted["losses" if "y" in feeds else "inner_products"].sum()
    for part, module in (("client_model", tiny_model.front), ("auxiliary_head", tiny_model.auxiliary_head)):
        if "y" in feeds or part == "client_model":
            gradients = torch.autograd.grad(total, list(module.parameters()), retain_graph=True)
            wanted |= {f"gradients.{part}.{i}": gradient for i, gradient in enumerate(gradients)}
    for name, got in found.items():
        np.testing.assert_allclose(got, wanted[name].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_and_outputs_are_named_in_flat_buffer_order(tiny_model: SplitModel, kind: ProgramKind, program: bytes) -> None:
    graph = onnx.load_from_string(program).graph
    inputs, outputs = expected_names(tiny_model, kind)
    assert [v.name for v in graph.input] == inputs
    assert [v.name for v in graph.output] == outputs
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in graph.input}
    assert shapes["x"] == (MICRO_BATCH, 1, 4, 4)
    weights = {f"client_model.{i}": spec.shape for i, spec in enumerate(tiny_model.to_spec().client_model)}
    assert {name: shape for name, shape in shapes.items() if name.startswith("client_model.")} == weights
    gradients = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in graph.output if v.name.startswith("gradients.c")}
    assert gradients in ({}, {f"gradients.{name}": shape for name, shape in weights.items()})


def test_a_program_holds_no_weights(tiny_model: SplitModel, program: bytes) -> None:
    graph = onnx.load_from_string(program).graph
    held = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    held += [onnx.numpy_helper.to_array(a.t) for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    weights = [p.detach().numpy() for part in (tiny_model.front, tiny_model.auxiliary_head, tiny_model.back) for p in part.parameters()]
    drawn = [w for w in weights if len(np.unique(w)) > 1]
    assert drawn
    for array in held:
        assert not any(array.size == w.size and np.array_equal(array.reshape(-1), w.reshape(-1)) for w in drawn)
    assert not any(w.tobytes() in program for w in drawn)


def test_a_program_tells_nothing_of_the_machine_it_was_made_on(program: bytes) -> None:
    words = [str(Path.cwd()), os.path.dirname(torch.__file__), "site-packages", ".py", "/work", "/home", "/tmp", socket.gethostname()]  # noqa: PTH120
    if len(getpass.getuser()) > 4:
        words.append(getpass.getuser())
    for word in words:
        assert word.encode() not in program, word


def test_a_program_uses_standard_operators_and_no_other_files(program: bytes) -> None:
    proto = onnx.load_from_string(program)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert not proto.functions
    assert not any(tensor.external_data or tensor.data_location for tensor in proto.graph.initializer)
    assert len(program) < MAX_PROGRAM_BYTES


def test_a_program_is_exported_once(tiny_model: SplitModel, kind: ProgramKind, program: bytes, program_cache: ProgramCache) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "export", lambda _function: pytest.fail("exported again"))
        assert program_cache.program(tiny_model, kind, micro_batch=MICRO_BATCH) == program


def test_programs_of_other_models_kinds_and_sizes_are_kept_apart(tiny_model: SplitModel, tmp_path: Path) -> None:
    wider = build_model(
        "cnn", {"front_widths": [3], "front_strides": [2]}, data=DataSpecification("test", (1, 4, 4), num_classes=3), seed=0
    )
    cache = ProgramCache(tmp_path)
    wanted = [(m, k, size) for m in (tiny_model, wider) for k in KINDS for size in (1, 2)]
    with pytest.MonkeyPatch.context() as patch:
        for number, (model, of_kind, size) in enumerate(wanted):
            patch.setattr(export_module, "export", lambda _function, data=b"%d" % number: data)
            cache.program(model, of_kind, micro_batch=size)
        assert [cache.program(m, k, micro_batch=size) for m, k, size in wanted] == [b"%d" % number for number in range(len(wanted))]


def test_a_cache_that_cannot_be_written_is_no_surprise(tiny_model: SplitModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "export", lambda _function: b"program")
        try:
            assert ProgramCache(tmp_path / "file" / "cache").program(tiny_model, ProgramKind.FRONT, micro_batch=MICRO_BATCH) == b"program"
        except HeronError as exc:
            assert "cache" in str(exc)


def test_a_model_that_cannot_be_exported_is_a_program_error(tiny_model: SplitModel) -> None:
    class Opaque(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(np.sort(x.numpy()))

    function = compile_function(tiny_model, ProgramKind.FRONT, micro_batch=1)
    broken = type(function)(function.kind, Opaque(), arguments=(torch.zeros(1),), input_names=("x",), output_names=("activations",))
    with pytest.raises(ProgramError, match="cannot be exported"):
        export_module.export(broken)


class Random(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen: torch.Tensor = torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))
        return chosen


class Dividing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = x.to(torch.int64)
        return (whole % whole).to(torch.float32)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [(Random(), "the operator 'RandomUniformLike'"), (Branching(), "the operator 'If'"), (Dividing(), "Mod may divide by anything")],
)
def test_what_devices_refuse_is_refused_before_a_run_by_name(tiny_model: SplitModel, module: torch.nn.Module, sentence: str) -> None:
    function = compile_function(tiny_model, ProgramKind.FRONT, micro_batch=1)
    foreign = type(function)(function.kind, module, arguments=(torch.ones(2),), input_names=("x",), output_names=("activations",))
    with pytest.raises(ProgramError, match=sentence):
        export_module.export(foreign)


def test_no_program_is_compiled_once_the_process_was_asked_to_stop(tiny_model: SplitModel, tmp_path: Path) -> None:
    stop = threading.Event()
    cache = ProgramCache(tmp_path, stop)
    stop.set()
    with pytest.raises(Interrupted):
        cache.program(tiny_model, ProgramKind.FRONT, micro_batch=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU])
def test_recurrent_fronts_are_among_what_devices_run(tiny_model: SplitModel, layer: type[torch.nn.RNNBase]) -> None:
    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = layer(3, 4, num_layers=2, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.recurrent(x)[0]
            return states

    function = compile_function(tiny_model, ProgramKind.FRONT, micro_batch=1)
    module, x = Recurrent(), torch.randn(2, 5, 3)
    program = export_module.export(type(function)(function.kind, module, arguments=(x,), input_names=("x",), output_names=("activations",)))
    assert layer.__name__.encode() in program
    (found,) = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    with torch.no_grad():
        assert np.allclose(found, module(x).numpy(), atol=1e-5)
