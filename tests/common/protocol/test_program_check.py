"""Programs by their bytes: what real exports hold passes; other domains, functions, files, loops, branches, what may end a process, and damage do not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from heron_common.errors import ProgramError
from heron_common.protocol.program_check import check_program
from heron_common.protocol.program_operators import OPERATORS
from heron_common.protocol.protobuf_fields import MalformedMessageError, fields, packed_varints
from heron_common.specification.model_spec import MAX_PROGRAM_BYTES, ProgramKind
from tests.client.models import tiny_model


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])


def model_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [value("x")], [value("y")], [numpy_helper.from_array(np.ones(2, np.float32), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def add() -> onnx.NodeProto:
    return helper.make_node("Add", ["x", "w"], ["y"])


def refused(model: onnx.ModelProto, why: str) -> None:
    with pytest.raises(ProgramError, match=why):
        check_program(model.SerializeToString())


def test_what_the_server_exports_passes_for_every_kind() -> None:
    for kind in (ProgramKind.LOSS, ProgramKind.GRADIENT):
        check_program(tiny_model(2).program(kind))


def in_a_branch(node: onnx.NodeProto) -> onnx.NodeProto:
    graph = helper.make_graph([node], "b", [], [value("y")])
    return helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=helper.make_graph([add()], "e", [], [value("y")]))


def test_another_domain_is_refused() -> None:
    refused(model_of(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")), "com.microsoft")


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


def test_data_in_another_file_is_refused_in_constants_of_graph_and_node() -> None:
    model = model_of(add())
    outside(model.graph.initializer[0])
    refused(model, "another file")
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(2, np.float32)))
    outside(node.attribute[0].t)
    refused(model_of(node), "another file")
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


def test_loops_and_branches_are_refused_by_name_and_so_is_any_graph_within_a_graph() -> None:
    body = helper.make_graph([add()], "b", [value("x")], [value("y")])
    refused(model_of(helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)), "the operator 'Loop'")
    refused(model_of(helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)), "the operator 'Scan'")
    refused(model_of(in_a_branch(add())), "the operator 'If'")
    disguised = in_a_branch(add())
    disguised.op_type = "Add"
    refused(model_of(disguised), "a graph within its graph")


@pytest.mark.parametrize(
    "name", ["RandomNormal", "Dropout", "SequenceAt", "StringConcat", "Optional", "GroupNormalization", "Add ", "add", ""]
)
def test_an_operator_that_is_not_listed_is_refused_by_name(name: str) -> None:
    refused(model_of(helper.make_node(name, ["x"], ["y"])), f"the operator '{name}'")


def test_every_listed_operator_is_one_of_onnx() -> None:
    assert {name.decode() for name in OPERATORS} <= {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain} | {"Swish"}


def divided(operator: str, kind: int, divisor: onnx.TensorProto | None, named: int | None = None) -> onnx.ModelProto:
    """A program that divides its input, as `kind`, by a constant or by itself; `named` is what is said of the number in between."""
    steps = [helper.make_node("Cast", ["x"], ["n"], to=kind), helper.make_node(operator, ["n", "d" if divisor else "n"], ["q"])]
    graph = helper.make_graph([*steps, helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)], "g", [value("x")], [value("y")])
    graph.value_info.append(helper.make_tensor_value_info("n", named or kind, [2]))
    if divisor is not None:
        divisor.name = "d"
        graph.initializer.append(divisor)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_whole_numbers_are_divided_by_harmless_constants_only(operator: str) -> None:
    whole, real = TensorProto.INT64, TensorProto.FLOAT
    check_program(divided(operator, real, None).SerializeToString())
    check_program(divided(operator, whole, numpy_helper.from_array(np.array([3, -2]))).SerializeToString())
    for divisor in (None, *(numpy_helper.from_array(np.array([3, bad])) for bad in (0, -1))):
        refused(divided(operator, whole, divisor), "may divide by anything")
    refused(divided(operator, TensorProto.INT32, numpy_helper.from_array(np.array([-1], np.int32))), "may divide by anything")
    unnamed = divided(operator, whole, None)
    del unnamed.graph.value_info[:]
    refused(unnamed, "may divide by anything")


def test_a_constant_that_an_input_may_replace_or_that_is_there_twice_is_none() -> None:
    model = divided("Div", TensorProto.INT64, numpy_helper.from_array(np.array([3, -2])))
    model.graph.input.append(helper.make_tensor_value_info("d", TensorProto.INT64, [2]))
    refused(model, "may divide by anything")
    model = divided("Div", TensorProto.INT64, numpy_helper.from_array(np.array([3, -2])))
    model.graph.initializer.append(model.graph.initializer[0])
    refused(model, "may divide by anything")


def recurrent(operator: str, shape: list[int] | None) -> onnx.ModelProto:
    """A program that cuts its samples [3, 2, 2] to as many as its other input says, and gives them to a layer; to a constant shape before, if there is one."""
    gates = {"LSTM": 8, "GRU": 6}[operator]
    constants = {"start": np.array([0]), "axis": np.array([1])}
    constants |= {"W": np.ones((1, gates, 2), np.float32), "R": np.ones((1, gates, 2), np.float32)}
    nodes = [
        helper.make_node("Cast", ["count"], ["end"], to=TensorProto.INT64),
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["some"]),
    ]
    if shape is not None:
        constants["shape"] = np.array(shape)
        nodes.append(helper.make_node("Reshape", ["some", "shape"], ["samples"]))
    nodes.append(helper.make_node(operator, ["some" if shape is None else "samples", "W", "R"], ["y"], hidden_size=2))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2, 2]),
        helper.make_tensor_value_info("count", TensorProto.FLOAT, [1]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 1, 2, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()])
    # The lie of a program that would have the runtime take the Reshape for nothing.
    graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 2, 2]) for name in ("some", "samples"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_recurrent_layers_get_samples_of_a_constant_shape_which_is_never_empty(operator: str) -> None:
    for shape in (None, [3, 0, 2], [3, -1, 2]):
        refused(recurrent(operator, shape), f"this one's {operator} may get empty ones")
    model = recurrent(operator, [3, 2, 2])
    model.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [3]))
    refused(model, f"this one's {operator} may get empty ones")
    program = recurrent(operator, [3, 2, 2]).SerializeToString()
    check_program(program)
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    x = np.ones((3, 2, 2), np.float32)
    assert session.run(None, {"x": x, "count": np.array([2.0], np.float32)})[0].shape == (3, 1, 2, 2)
    # Without the Reshape this would be the end of the process, and of these tests.
    with pytest.raises(Exception, match="Reshape"):
        session.run(None, {"x": x, "count": np.array([0.0], np.float32)})


def test_what_is_said_of_a_value_twice_in_two_ways_is_not_believed() -> None:
    model = divided("Div", TensorProto.INT64, None)
    model.graph.value_info.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, [2]))
    refused(model, "may divide by anything")


def test_the_runtime_refuses_a_program_that_calls_its_whole_numbers_real() -> None:
    lying = divided("Div", TensorProto.INT64, None, named=TensorProto.FLOAT).SerializeToString()
    check_program(lying)
    with pytest.raises(Exception, match="does not match expected type"):
        onnxruntime.InferenceSession(lying, providers=["CPUExecutionProvider"])


def test_two_graphs_which_a_runtime_would_merge_are_refused() -> None:
    data = model_of(add()).SerializeToString()
    with pytest.raises(ProgramError, match="twice"):
        check_program(data + data)


def test_a_field_that_onnx_does_not_have_is_refused() -> None:
    with pytest.raises(ProgramError, match="does not know"):
        check_program(model_of(add()).SerializeToString() + b"\xfa\x01\x00")


def test_every_truncation_and_every_flipped_byte_passes_or_is_refused_and_nothing_else() -> None:
    data = divided("Div", TensorProto.INT64, numpy_helper.from_array(np.array([3, -2]))).SerializeToString()
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
