"""Recurrent layers in programs get samples of a constant shape: ONNX Runtime 1.31 aborts on empty ones, and devices take no program that could give them such."""

from __future__ import annotations

from typing import Any

from heron_common.errors import ProgramError
from heron_common.protocol.program_operators import RECURRENT


def reshape_before_recurrent_layers(proto: Any) -> None:
    """Put a Reshape to the shape that they have anyway before the samples of each LSTM and GRU of a model, in place.

    Raises:
        ProgramError: nobody knows their shape.

    """
    import onnx

    layers = [node for node in proto.graph.node if node.op_type.encode() in RECURRENT]
    if not layers:
        return
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in (*inferred.input, *inferred.value_info)}
    for number, layer in enumerate(layers):
        samples = layer.input[0]
        shape = shapes.get(samples, [])
        if len(shape) != 3 or min(shape) < 1:
            raise ProgramError(
                f"a recurrent layer's samples have no constant shape ({shape}), and devices take no other: use a model of fixed sizes"
            )
        name = f"recurrent_layer_{number}"
        proto.graph.initializer.append(
            onnx.helper.make_tensor(f"{name}.shape", onnx.TensorProto.INT64, [3], _little_endian(shape), raw=True)
        )
        reshape = onnx.helper.make_node("Reshape", [samples, f"{name}.shape"], [f"{name}.samples"], name=f"{name}.reshape")
        proto.graph.node.insert(list(proto.graph.node).index(layer), reshape)
        layer.input[0] = f"{name}.samples"


def _little_endian(shape: list[int]) -> bytes:
    return b"".join(size.to_bytes(8, "little") for size in shape)
