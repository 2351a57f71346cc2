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


def sealing(serialise: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a serialiser that seals what it writes."""
    return lambda message: seal(serialise(message))


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
