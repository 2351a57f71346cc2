"""Receive one payload stream: header first, then checked chunks into a writer, then the trailer. Nothing is allocated on trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from heron_common.assignment import DataSpecification
from heron_common.chunks import StreamReceiver
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError, StorageError
from heron_common.tensor_checks import check_values
from heron_common.tensors import TensorSpec
from heron_server.storage.spool import SpoolWriter


def receive_header(messages: Iterator[Any]) -> Any:
    """Return the header of a stream.

    Raises:
        RefusedError: TRUNCATED if the stream is empty or begins with something else.

    """
    first = next(messages, None)
    if first is None or first.WhichOneof("part") != "header":
        raise RefusedError(ErrorCode.TRUNCATED, "a stream begins with a header: send it first")
    return first.header


def receive_payload(
    messages: Iterator[Any],
    specs: tuple[TensorSpec, ...],
    writer: SpoolWriter | None,
    expected: DataSpecification,
    on_chunk: Callable[[str, int], None],
) -> str:
    """Check and write every chunk and return the payload's SHA-256 in hexadecimal; without a writer it is only checked and digested.

    Raises:
        RefusedError: wrong order, size, value, length or digest; a stream that ends early; a disk that refuses.

    """
    receiver = StreamReceiver(specs)
    for message in messages:
        part = message.WhichOneof("part")
        if part == "trailer":
            return receiver.check_trailer(message.trailer.length_bytes, message.trailer.sha256)
        if part != "chunk":
            raise RefusedError(ErrorCode.TRUNCATED, f"after the header come chunks and a trailer, but a {part or 'nothing'} came")
        data = message.chunk.data
        offset = receiver.received_bytes(message.chunk.tensor_index)
        spec = receiver.check_chunk(message.chunk.tensor_index, data)
        check_values(spec, data, expected, offset)
        on_chunk(spec.name, len(data))
        if writer is not None:
            try:
                writer.write(data)
            except StorageError as exc:
                raise RefusedError(ErrorCode.SPOOL_FULL, f"{exc}: send it again later", 1.0) from exc
    raise RefusedError(ErrorCode.TRUNCATED, "the stream ended without a trailer: send the upload again")
