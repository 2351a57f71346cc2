"""Walk the fields of a protobuf message without its schema: strict, bounded, nothing copied and nothing built from what a message claims."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; 3 and 4 are groups, which no format that is read here has."""

_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_MAX_TAG = (1 << 32) - 1
_MAX_VARINT_BYTES = 10


class Field(NamedTuple):
    """One field: `value` is a varint's number or 0, `data` the bytes of any other kind."""

    number: int
    wire_type: int
    value: int
    data: memoryview


class MalformedMessageError(ValueError):
    """The bytes are no protobuf message, or not one that every reader would read alike."""


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message in their order; a length is compared with what is left before anything is taken.

    Raises:
        MalformedMessageError: it ends within a field, or has a group, a field number 0 or a number that does not fit.

    """
    position, nothing = 0, message[:0]
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or tag > _MAX_TAG:
            raise MalformedMessageError(f"a field has the number {number}")
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield Field(number, wire_type, value, nothing)
            continue
        if wire_type == BYTES:
            size, position = _varint(message, position)
        elif wire_type in _FIXED_BYTES:
            size = _FIXED_BYTES[wire_type]
        else:
            raise MalformedMessageError(f"field {number} has the wire type {wire_type}")
        if size > len(message) - position:
            raise MalformedMessageError(f"field {number} has {size} bytes, but {len(message) - position} are left")
        yield Field(number, wire_type, 0, message[position : position + size])
        position += size


def packed_varints(data: memoryview) -> Iterator[int]:
    """Yield the numbers of a packed repeated field."""
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for count in range(min(_MAX_VARINT_BYTES, len(message) - position)):
        byte = message[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + count + 1
    raise MalformedMessageError("a number is cut off or too long")
