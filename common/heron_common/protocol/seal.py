"""The seal of a message: its last field, a CRC-32 of every byte before. A message with a broken seal is not interpreted, but sent again."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

_TAG = bytes([15 << 3 | 5])
"""Field 15, four bytes little-endian: what protobuf writes for `fixed32 seal = 15`."""

SEAL_BYTES = len(_TAG) + 4


class Damaged:
    """Stands for a message whose bytes are not the ones that were sent."""


class Unparsable(Damaged):
    """Stands for a message whose bytes are the ones that were sent, and which no parser takes."""


def seal(data: bytes) -> bytes:
    """Return a serialised message with its seal."""
    return b"".join((data, _TAG, zlib.crc32(data).to_bytes(4, "little")))


def is_whole(data: bytes) -> bool:
    """Whether a message arrived with its seal unbroken."""
    body = memoryview(data)[:-SEAL_BYTES]
    return data[-SEAL_BYTES:-4] == _TAG and zlib.crc32(body).to_bytes(4, "little") == data[-4:]


class ChunkMessage:
    """A chunk of an upload or update, written to the bytes that protobuf makes of its message, in one copy: building and serialising that one takes four.

    It stands for `TrainBatchRequest(chunk=TensorChunk(...))`, and for `SubmitUpdateRequest`, whose parts have the same numbers.
    """

    __slots__ = ("data", "tensor_index")

    def __init__(self, tensor_index: int, data: bytes) -> None:
        self.tensor_index, self.data = tensor_index, data

    @property
    def chunk(self) -> ChunkMessage:
        """Itself, as whoever takes it without a network asks for it."""
        return self

    def WhichOneof(self, _name: str) -> str:  # noqa: N802 - as protobuf's messages have it
        """Return which part it is."""
        return "chunk"

    def sealed(self) -> bytes:
        """Return the message with its seal."""
        index = _CHUNK_INDEX + _varint(self.tensor_index) if self.tensor_index else b""
        inner = index + _CHUNK_DATA + _varint(len(self.data)) if self.data else index
        head = _PART_CHUNK + _varint(len(inner) + len(self.data)) + inner
        checked = zlib.crc32(self.data, zlib.crc32(head))
        return b"".join((head, self.data, _TAG, checked.to_bytes(4, "little")))


_PART_CHUNK, _CHUNK_INDEX, _CHUNK_DATA = b"\x12", b"\x08", b"\x12"
"""Field 2 of a stream's message, a message; in it field 1, a number, and field 2, bytes."""


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def sealing(serialise: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a serialiser that seals what it writes."""
    return lambda message: message.sealed() if isinstance(message, ChunkMessage) else seal(serialise(message))


def opening(parse: Callable[[bytes], Any], speaks_another_version: Callable[[Any], bool] = lambda _: False) -> Callable[[bytes], Any]:
    """Return a parser of sealed messages; of others it makes `Damaged`, unless they have no seal and are of a version that has none.

    It never raises, for whoever calls it would log a traceback for every message that a stranger sends.
    """
    parse = forgiving(parse)

    def read(data: bytes) -> Any:
        if is_whole(data):
            message = parse(data)
            if not isinstance(message, Damaged):
                message.ClearField("seal")
            return message
        if data[-SEAL_BYTES:-4] != _TAG:
            message = parse(data)
            if not isinstance(message, Damaged) and speaks_another_version(message):
                return message
        return Damaged()

    return read


def forgiving(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a parser that makes `Unparsable` of what it cannot take."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except Exception:
            return Unparsable()

    return read
