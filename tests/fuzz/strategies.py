"""Bytes that are nearly valid: messages filled at random by their schema, and seeds with pieces cut out, doubled and overwritten."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

_WHOLE = [0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 255, 1 << 20, (1 << 31) - 1, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]
_REAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan]
_TEXT = ["", "a", "ab" * 32, "client_model", "../../etc/passwd", "\n", "é" * 300]
_RANGES = {
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}


def messages(kind: Any) -> st.SearchStrategy[bytes]:
    """Return serialised messages of a kind; every field is there or not, with values at the edges of what it can hold."""
    # One number a message: drawing each field from hypothesis itself takes a hundred times as long, and there is little to shrink.
    return st.integers(0, (1 << 32) - 1).map(lambda seed: _message(kind, Random(seed)).SerializeToString())


def mutations(seed: bytes) -> st.SearchStrategy[bytes]:
    """Return the seed after a few edits."""
    return st.lists(_edits(len(seed)), min_size=1, max_size=4).map(lambda edits: _edited(seed, edits))


def _message(kind: Any, random: Random) -> Any:
    message = kind()
    fields = list(kind.DESCRIPTOR.fields)
    for field in random.sample(fields, min(len(fields), random.choice([1, 2, 4, 8, 32]))):
        if field.is_repeated:
            getattr(message, field.name).extend(_value(field, random) for _ in range(random.randrange(4)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(_value(field, random))
        else:
            setattr(message, field.name, _value(field, random))
    return message


def _value(field: FieldDescriptor, random: Random) -> Any:
    if field.message_type is not None:
        return _message(field.message_type._concrete_class, random)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        case FieldDescriptor.CPPTYPE_STRING:
            text = random.choice(_TEXT)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return random.choice(_REAL)
    least, most = _RANGES[field.cpp_type]
    return random.choice([n for n in (*_WHOLE, least, -1) if least <= n <= most])


def _edits(size: int) -> st.SearchStrategy[tuple[int, int, bytes]]:
    """Return (where, how much is taken away there, what is put there instead)."""
    place = st.integers(0, max(0, size))
    taken = st.sampled_from([0, 1, 1, 1, 2, 4, 8, 64, 1 << 20])
    put = st.sampled_from([b"", b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 8, b"\xff" * 9 + b"\x01", b"[" * 3000, b"9" * 20]) | st.binary(
        max_size=8
    )
    return st.tuples(place, taken, put)


def _edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, taken, put in edits:
        data = data[:place] + put + data[place + taken :]
    return data
