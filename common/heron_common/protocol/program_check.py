"""What a program may hold, read from its bytes before any runtime sees them: listed operators, its own small constants, and nothing else.

The bytes are an ONNX ModelProto. Devices have no `onnx`, so its fields are walked here by number; the table below has every field of onnx.proto that
a program may have. What it does not name is refused: a reader that knows the field would do something with it that was not looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from dataclasses import field as attribute

from heron_common.errors import ProgramError
from heron_common.protocol.program_operators import OPERATORS, Hazards
from heron_common.protocol.protobuf_fields import BYTES, VARINT, Field, MalformedMessageError, fields, packed_varints
from heron_common.specification.model_spec import MAX_PROGRAM_BYTES

STANDARD_DOMAINS = (b"", b"ai.onnx")
"""Two names of the one domain whose operators every build of ONNX Runtime has; what it adds in loading a program it adds itself."""

MAX_FIELDS = 1 << 19
"""Fields of a whole program; a front of GPT-2 has some ten thousand."""

_MAX_ELEMENTS_PER_BYTE = 4
"""Of the narrowest type, of two bits."""

_Table = dict[int, str]
"""What is said of fields by number: "skip", "refuse: why", or the kind of message that a field holds."""

_MESSAGES: dict[str, _Table] = {
    "model": dict.fromkeys((1, 2, 3, 4, 5, 6), "skip")
    | {7: "graph", 8: "operators", 14: "skip", 20: "refuse: training steps of its own", 25: "refuse: functions of its own"},
    "operators": {1: "domain", 2: "skip"},
    "graph": {1: "node", 2: "skip", 5: "constant", 10: "skip", 14: "skip", 16: "skip"}
    | {11: "input", 12: "value", 13: "value"}
    | {15: "refuse: sparse tensors"},
    "node": dict.fromkeys((1, 2, 3), "skip") | {4: "operator", 5: "attribute", 6: "skip", 7: "domain", 8: "overload", 9: "skip"},
    "attribute": dict.fromkeys((1, 2, 3, 4, 7, 8, 9, 13, 14, 15, 20), "skip")
    | {5: "tensor", 10: "tensor", 6: "refuse: a graph within its graph", 11: "refuse: a graph within its graph"}
    | {21: "refuse: an attribute of a function", 22: "refuse: sparse tensors", 23: "refuse: sparse tensors"},
    "tensor": {1: "dimensions", 3: "refuse: a tensor in segments", 13: "refuse: data in another file", 14: "location"}
    | dict.fromkeys((2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16), "skip"),
}
"""ModelProto, OperatorSetIdProto, GraphProto, NodeProto, AttributeProto and TensorProto of onnx.proto (ONNX 1.21)."""

_ONCE = {("model", 7), ("attribute", 5)}
"""Messages that stand alone: two of them a runtime would merge into one that was not looked at as a whole."""

_NUMBERS = {"dimensions", "location"}
"""Kinds of fields that are numbers; all other kinds that are looked at are bytes."""


def check_program(data: bytes | memoryview) -> None:
    """Refuse a program that is not made of listed operators and constants of its own; time and memory are bounded by its size.

    Raises:
        ProgramError: it is too large, no ONNX model, or holds another operator or domain, a function, a sparse or external tensor, or a division or a
            recurrent layer that may end the process.

    """
    if len(data) > MAX_PROGRAM_BYTES:
        raise ProgramError(f"a program has at most {MAX_PROGRAM_BYTES} bytes, but one of {len(data)} came: it is refused")
    try:
        walk = _Walk()
        walk.message(memoryview(data), "model")
    except MalformedMessageError as exc:
        raise ProgramError(f"a program is an ONNX model, but these bytes are none ({exc}): it is refused") from exc
    if not walk.has_graph:
        raise ProgramError("a program is an ONNX model with a graph, but these bytes hold none: it is refused")
    walk.hazards.check()


@dataclass
class _Walk:
    """What was counted on the way through one program."""

    num_fields: int = 0
    has_graph: bool = False
    hazards: Hazards = attribute(default_factory=Hazards)

    def message(self, message: memoryview, kind: str) -> None:
        table = _MESSAGES[kind]
        dimensions: list[int] = []
        alone: set[int] = set()
        for field in fields(message):
            self.num_fields += 1
            if self.num_fields > MAX_FIELDS:
                raise _refusal(f"more than {MAX_FIELDS} fields")
            found = table.get(field.number)
            if found is None:
                raise _refusal(f"field {field.number} of its {kind}, which this version does not know")
            if found.startswith("refuse: "):
                raise _refusal(found.removeprefix("refuse: "))
            if field.number in alone:
                raise _refusal(f"field {field.number} of its {kind} twice")
            if (kind, field.number) in _ONCE:
                alone.add(field.number)
            if found != "skip":
                self._field(field, found, dimensions)
        if kind == "tensor" and _num_elements(dimensions) > _MAX_ELEMENTS_PER_BYTE * len(message):
            raise _refusal(f"a constant of shape {dimensions[:8]} in {len(message)} bytes")

    def _field(self, field: Field, found: str, dimensions: list[int]) -> None:
        # A repeated number may come alone or packed; every other field has one form only.
        if field.wire_type != (VARINT if found in _NUMBERS else BYTES) and not (found == "dimensions" and field.wire_type == BYTES):
            raise MalformedMessageError(f"field {field.number} has the wire type {field.wire_type}")
        if found == "dimensions":
            dimensions += [field.value] if field.wire_type == VARINT else packed_varints(field.data)
        elif found == "location" and field.value:
            raise _refusal("data in another file")
        elif found == "domain" and bytes(field.data[:64]) not in STANDARD_DOMAINS:
            raise _refusal(f"operators of the domain {bytes(field.data[:64])!r}")
        elif found == "operator" and bytes(field.data[:64]) not in OPERATORS:
            raise _refusal(
                f"the operator {bytes(field.data[:64]).decode('ascii', 'backslashreplace')!r}, which is not one of those that end by themselves and that devices run"
            )
        elif found == "overload" and len(field.data):
            raise _refusal("overloaded functions")
        elif found == "input":
            self.hazards.input(field.data)
        elif found == "value":
            self.hazards.value(field.data)
        elif found in _MESSAGES or found == "constant":
            self._nested(field.data, found)

    def _nested(self, message: memoryview, kind: str) -> None:
        self.has_graph |= kind == "graph"
        self.message(message, "tensor" if kind == "constant" else kind)
        if kind == "constant":
            self.hazards.constant(message)
        elif kind == "node":
            self.hazards.node(message)


def _num_elements(dimensions: list[int]) -> int:
    # A rank without end would make a product without end.
    if len(dimensions) > 64:
        raise _refusal(f"a constant of {len(dimensions)} dimensions")
    return math.prod(dimensions) if dimensions else 0


def _refusal(what: str) -> ProgramError:
    return ProgramError(f"a program holds listed operators and constants of its own only, but this one has {what}: it is refused")
