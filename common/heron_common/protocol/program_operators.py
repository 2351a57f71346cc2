"""Which operators a program may have: those that end when their inputs do, answer the same every time, and cannot bring the process down.

Read beside `program_check.py`, which walks a program's bytes; this file says what it may find there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from heron_common.errors import ProgramError
from heron_common.numerics.tensors import Int64Array
from heron_common.protocol.protobuf_fields import VARINT, fields

OPERATORS = frozenset(
    name.encode()
    for names in (
        # Element by element.
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp",
        "Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow",
        "Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor",
        # Over axes.
        "ArgMax ArgMin CumSum LogSoftmax ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK",
        # Shapes and places.
        "Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND OneHot Pad Range Reshape ScatterElements ScatterND",
        "Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze",
        # Layers and losses.
        "AveragePool BatchNormalization Conv ConvTranspose DequantizeLinear Einsum GRU Gemm GlobalAveragePool GlobalMaxPool GridSample InstanceNormalization LRN LSTM",
        "LayerNormalization LpNormalization MatMul MaxPool NegativeLogLikelihoodLoss QuantizeLinear RNN Resize SoftmaxCrossEntropyLoss",
    )
    for name in names.split()
)
"""No loops and branches (Loop, Scan, If), nothing random, no sequences, texts and optional values, and none that the runtime spells out in others."""

_DIVISIONS = (b"Div", b"Mod")
"""A processor raises a signal where whole numbers are divided by zero, or the smallest of them by -1, and the process is gone."""

RECURRENT = (b"LSTM", b"GRU")
"""What torch makes of its own. ONNX Runtime 1.31 aborts where their samples are empty, which a program can make of any: a Reshape to a constant shape
right before them is an error then, whatever comes."""

_FLOATS = {1, 10, 11, 16}
_WHOLE = {2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 12: np.uint32, 13: np.uint64}
"""TensorProto.DataType of float, float16, double and bfloat16, and of whole numbers."""

_UNKNOWN = 0


class Hazards:
    """What has to be known of a graph's values to say that none of its nodes can end the process."""

    def __init__(self) -> None:
        self._types: dict[bytes, int] = {}
        self._constants: dict[bytes, tuple[int, bytes]] = {}
        self._shapes: dict[bytes, bytes] = {}
        """What a Reshape gives -> the name of its shape."""
        self._divisions: list[tuple[bytes, list[bytes]]] = []
        self._recurrent: list[tuple[bytes, list[bytes]]] = []

    def node(self, message: memoryview) -> None:
        """Take a NodeProto."""
        inputs: list[bytes] = []
        outputs: list[bytes] = []
        operator = b""
        for field in fields(message):
            if field.number == 1:
                inputs.append(bytes(field.data))
            elif field.number == 2:
                outputs.append(bytes(field.data))
            elif field.number == 4:
                operator = bytes(field.data)
        if operator in _DIVISIONS:
            self._divisions.append((operator, inputs))
        elif operator in RECURRENT:
            self._recurrent.append((operator, inputs))
        elif operator == b"Reshape" and len(inputs) == 2 and len(outputs) == 1:
            self._shapes[outputs[0]] = inputs[1]

    def input(self, message: memoryview) -> None:
        """Take the ValueInfoProto of an input: a constant of its name is but a default, and what comes counts."""
        self._constants[self.value(message)] = (_UNKNOWN, b"")

    def value(self, message: memoryview) -> bytes:
        """Take a ValueInfoProto: an input, an output or a value between nodes; return its name. The runtime refuses a program in which it is another than what comes."""
        name, kind = b"", _UNKNOWN
        for field in fields(message):
            if field.number == 1:
                name = bytes(field.data)
            elif field.number == 2:
                kind = _element_type(field.data) or kind
        self._learn(name, kind)
        return name

    def constant(self, message: memoryview) -> None:
        """Take a TensorProto of the graph's own."""
        name, kind, raw = b"", _UNKNOWN, b""
        for field in fields(message):
            if field.number == 2 and field.wire_type == VARINT:
                kind = field.value
            elif field.number == 8:
                name = bytes(field.data)
            elif field.number == 9:
                raw = bytes(field.data)
        self._learn(name, kind)
        # Of two of a name, or of an input's, nobody knows which one counts.
        self._constants[name] = (kind, raw) if name not in self._constants else (_UNKNOWN, b"")

    def check(self) -> None:
        """Refuse a division of whole numbers but by constants that are neither 0 nor -1, and recurrent layers whose samples may be empty.

        Raises:
            ProgramError: there is one.

        """
        for operator, inputs in self._recurrent:
            if not inputs or not _is_positive(self._constants, self._shapes.get(inputs[0], b"")):
                raise ProgramError(
                    f"a program gives recurrent layers samples of a constant shape only, but this one's {operator.decode()} may get empty ones, which would "
                    "end the process: it is refused; reshape them to a constant shape right before"
                )
        for operator, inputs in self._divisions:
            kinds = {self._types.get(name, _UNKNOWN) for name in inputs}
            if not (kinds <= _FLOATS or (len(inputs) == 2 and _is_harmless(self._constants, inputs[1]))):
                raise ProgramError(
                    f"a program divides whole numbers only by constants other than 0 and -1, but this one's {operator.decode()} may divide by anything, "
                    "which would end the process: it is refused; divide floating-point numbers instead"
                )

    def _learn(self, name: bytes, kind: int) -> None:
        # What is said twice in two ways is not known.
        self._types[name] = kind if self._types.get(name, kind) == kind else _UNKNOWN


def _is_harmless(constants: Mapping[bytes, tuple[int, bytes]], name: bytes) -> bool:
    divisors = _whole_numbers(constants, name)
    return divisors is not None and not bool(np.isin(divisors, (0, -1)).any())


def _is_positive(constants: Mapping[bytes, tuple[int, bytes]], name: bytes) -> bool:
    shape = _whole_numbers(constants, name)
    return shape is not None and bool((shape > 0).all())


def _whole_numbers(constants: Mapping[bytes, tuple[int, bytes]], name: bytes) -> Int64Array | None:
    """Return the values of a constant; None where they are not known, or it has none."""
    kind, raw = constants.get(name, (_UNKNOWN, b""))
    if kind not in _WHOLE or not raw or len(raw) % np.dtype(_WHOLE[kind]).itemsize:
        return None
    return np.frombuffer(raw, np.dtype(_WHOLE[kind]).newbyteorder("<")).astype(np.int64)


def _element_type(message: memoryview) -> int:
    """Return elem_type of a TypeProto of a tensor."""
    kind = _UNKNOWN
    for tensor in fields(message):
        if tensor.number == 1:
            kind = next(
                (field.value for field in reversed(list(fields(tensor.data))) if field.number == 1 and field.wire_type == VARINT), kind
            )
    return kind
