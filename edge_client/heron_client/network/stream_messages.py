"""What a client streams, message by message: the header, chunks as they become available, and the trailer that says what they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from heron_client.network.stall import Progress
from heron_client.network.upload import Chunk
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.protocol.chunks import StreamAccount
from heron_common.protocol.seal import ChunkMessage
from heron_proto.v1 import split_training_pb2 as pb


def stream_messages(
    message: Any, header: Any, chunks: Iterator[Chunk], *, progress: Progress, count_bytes: Callable[[int, int], None]
) -> Iterator[Any]:
    """Yield the messages of one stream, of the type `message`; `count_bytes` is told (tensor index, bytes) of each chunk.

    A chunk that is None cancels the stream.
    """
    account = StreamAccount()
    yield message(header=header)
    # Asked for the next message, gRPC has written the one before; until that is computed, nobody else can move.
    progress.pause()
    for chunk in chunks:
        if chunk is None:
            progress.cancel()
            return
        tensor_index, data = chunk
        progress.note()
        account.add(data)
        crash_point(CrashPoint.CLIENT_CHUNK_SENT)
        count_bytes(tensor_index, len(data))
        yield ChunkMessage(tensor_index, data)
        progress.pause()
    progress.note()
    yield message(trailer=pb.Trailer(length_bytes=account.length_bytes, sha256=account.sha256))
