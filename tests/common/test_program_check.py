"""Programs by their bytes: what real exports hold passes; other domains, functions, files, sparse tensors, endless loops and damage do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from heron_common.assignment import MAX_PROGRAM_BYTES, ProgramKind
from heron_common.errors import ProgramError
from heron_common.program_check import MAX_GRAPH_DEPTH, check_program
from heron_common.protobuf_fields import MalformedMessageError, fields, packed_varints
from tests.client.models import tiny_model


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])


def model_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [value("x")], [value("y")], [numpy_helper.from_array(np.ones(2, np.float32), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def add() -> onnx.NodeProto:
    return helper.make_node("Add", ["x", "w"], ["y"])


def branching(depth: int) -> onnx.NodeProto:
    inner = add() if depth == 0 else branching(depth - 1)
    graph = helper.make_graph([inner], "b", [], [value("y")])
    return helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)


def refused(model: onnx.ModelProto, why: str) -> None:
    with pytest.raises(ProgramError, match=why):
        check_program(model.SerializeToString())


def test_what_the_server_exports_passes_for_every_kind() -> None:
    for kind in (ProgramKind.LOSS, ProgramKind.GRADIENT):
        check_program(tiny_model(2).program(kind))


def test_branches_of_standard_operators_pass_up_to_a_depth() -> None:
    check_program(model_of(branching(MAX_GRAPH_DEPTH - 2)).SerializeToString())
    refused(model_of(branching(MAX_GRAPH_DEPTH - 1)), "graphs within graphs")


def in_a_branch(node: onnx.NodeProto) -> onnx.NodeProto:
    graph = helper.make_graph([node], "b", [], [value("y")])
    return helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=helper.make_graph([add()], "e", [], [value("y")]))


@pytest.mark.parametrize("place", [lambda node: node, in_a_branch])
def test_another_domain_is_refused_wherever_it_stands(place: Callable[[onnx.NodeProto], onnx.NodeProto]) -> None:
    foreign = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    refused(model_of(place(foreign)), "com.microsoft")


def test_an_import_of_another_domain_is_refused_even_unused() -> None:
    model = model_of(add())
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    refused(model, "ai.onnx.ml")


def test_functions_and_training_steps_are_refused() -> None:
    model = model_of(add())
    model.functions.append(helper.make_function("", "F", ["a"], ["a"], [add()], [helper.make_opsetid("", 20)]))
    refused(model, "functions")
    model = model_of(add())
    model.training_info.add()
    refused(model, "training")


def outside(tensor: onnx.TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def test_data_in_another_file_is_refused_in_constants_of_graph_branch_and_node() -> None:
    model = model_of(add())
    outside(model.graph.initializer[0])
    refused(model, "another file")
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(2, np.float32)))
    outside(node.attribute[0].t)
    refused(model_of(node), "another file")
    refused(model_of(in_a_branch(node)), "another file")
    model = model_of(add())
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    refused(model, "another file")
    model = model_of(add())
    model.graph.initializer[0].external_data.add()
    refused(model, "another file")


def test_sparse_tensors_which_grow_when_they_are_read_are_refused() -> None:
    model = model_of(add())
    model.graph.sparse_initializer.add().dims.append(1 << 40)
    refused(model, "sparse")
    node = helper.make_node("Constant", [], ["y"])
    node.attribute.add().sparse_tensor.dims.append(1 << 40)
    refused(model_of(node), "sparse")


@pytest.mark.parametrize("shape", [[1 << 40], [1 << 20, 1 << 20], [-1], [1] * 65])
def test_a_constant_that_claims_more_than_its_bytes_hold_is_refused(shape: list[int]) -> None:
    model = model_of(add())
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(shape)
    refused(model, "a constant of")


def test_a_loop_that_may_never_end_is_refused() -> None:
    body = helper.make_graph([add()], "b", [value("x")], [value("y")])
    refused(model_of(helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)), "never end")


def test_two_graphs_which_a_runtime_would_merge_are_refused() -> None:
    data = model_of(add()).SerializeToString()
    with pytest.raises(ProgramError, match="twice"):
        check_program(data + data)


def test_a_field_that_onnx_does_not_have_is_refused() -> None:
    with pytest.raises(ProgramError, match="does not know"):
        check_program(model_of(add()).SerializeToString() + b"\xfa\x01\x00")


def test_every_truncation_and_every_flipped_byte_passes_or_is_refused_and_nothing_else() -> None:
    data = model_of(branching(1)).SerializeToString()
    for position in range(len(data)):
        for damaged in (data[:position], data[:position] + bytes([data[position] ^ 0x80]) + data[position + 1 :]):
            try:
                check_program(damaged)
            except ProgramError:
                continue


@pytest.mark.parametrize("data", [b"", b"not a program", b"\x00", b"\x3a\xff\xff\xff\xff\x0f", bytes(MAX_PROGRAM_BYTES + 1)])
def test_bytes_that_are_no_program_are_refused(data: bytes) -> None:
    with pytest.raises(ProgramError):
        check_program(data)


def test_a_program_of_nothing_but_fields_is_refused_by_their_number() -> None:
    with pytest.raises(ProgramError, match="fields"):
        check_program(b"\x08\x00" * (MAX_PROGRAM_BYTES // 2))


def test_fields_are_walked_as_the_real_library_walks_them() -> None:
    model = model_of(add())
    found = {field.number: field for field in fields(memoryview(model.SerializeToString()))}
    assert found[1].value == model.ir_version
    assert bytes(found[7].data) == model.graph.SerializeToString()
    assert list(packed_varints(memoryview(b"\x03\x8e\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))) == [3, 270, (1 << 64) - 1]


@pytest.mark.parametrize(
    "data", [b"\x80", b"\x08" + b"\xff" * 10, b"\x0a\x02\x00", b"\x0d\x00", b"\x0b", b"\x02\x00", b"\x88" + b"\x80" * 8 + b"\x01\x00"]
)
def test_what_is_no_field_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        list(fields(memoryview(data)))
