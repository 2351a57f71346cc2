"""Receive one payload stream: header first, then checked chunks into a writer, then the trailer. Nothing is allocated on trust."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.protocol.chunks import StreamReceiver
from heron_common.protocol.tensor_checks import check_values
from heron_common.specification.data_specification import DataSpecification
from heron_server.rounds.receiving import Incoming


def receive_header(messages: Iterator[Any]) -> Any:
    """Return the header of a stream.

    Raises:
        RefusedError: TRUNCATED if the stream is empty or begins with something else.

    """
    first = next(messages, None)
    if first is None or first.WhichOneof("part") != "header":
        raise RefusedError(ErrorCode.TRUNCATED, "a stream begins with a header: send it first")
    return first.header


def receive_payload(messages: Iterator[Any], incoming: Incoming[Any], *, expected: DataSpecification, kind: str | None = None) -> str:
    """Check and take every chunk and return the payload's SHA-256 in hexadecimal; bytes are counted as `kind`, or by tensor.

    Raises:
        RefusedError: wrong order, size, value, length or digest; a stream that ends early; a round that is over; a disk that refuses.

    """
    receiver = StreamReceiver(incoming.specs)
    for message in messages:
        part = message.WhichOneof("part")
        if part == "trailer":
            return receiver.check_trailer(message.trailer.length_bytes, message.trailer.sha256)
        if part != "chunk":
            raise RefusedError(ErrorCode.TRUNCATED, f"after the header come chunks and a trailer, but a {part or 'nothing'} came")
        data = message.chunk.data
        offset = receiver.received_bytes(message.chunk.tensor_index)
        spec = receiver.check_chunk(message.chunk.tensor_index, data)
        check_values(spec, data, expected=expected, offset=offset)
        crash_point(CrashPoint.UPLOAD_CHUNK)
        incoming.take(kind or spec.name, data)
    raise RefusedError(ErrorCode.TRUNCATED, "the stream ended without a trailer: send the upload again")
