"""How a client reaches a server: opens the channel, seals messages, and turns what gRPC reports into errors of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from heron_common.error_catalog import ERROR_CODE_METADATA, RETRY_PUSHBACK_METADATA, ErrorCode
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.grpc_options import channel_options
from heron_common.seal import opening, sealing
from heron_common.timing import Timing
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingStub

_FATAL_TRANSPORT = {grpc.StatusCode.UNIMPLEMENTED}


class SealingChannel:
    """A channel whose calls seal what they send; a message that arrives damaged comes out as `Damaged`."""

    def __init__(self, channel: Any) -> None:
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            setattr(self, kind, _sealed(getattr(channel, kind)))


def _sealed(make: Callable[..., Any]) -> Callable[..., Any]:
    def multicallable(path: str, request_serializer: Any, response_deserializer: Any, **others: Any) -> Any:
        return make(path, request_serializer=sealing(request_serializer), response_deserializer=opening(response_deserializer), **others)

    return multicallable


def open_channel(target: str, timing: Timing) -> tuple[Any, Callable[[], None]]:
    """Return the service's stub at host:port, and what closes its channel."""
    channel = grpc.insecure_channel(target, options=channel_options(timing))
    return SplitTrainingStub(SealingChannel(channel)), channel.close  # type: ignore[no-untyped-call]


def translate(error: Any, target: str, has_joined: bool) -> HeronError:
    """Turn a gRPC failure into ours: the catalog's code if the server sent one, else a transport failure.

    A process that knows none of our calls is no HERON server, unless it answered before: then it was the way there that garbled a call's name.
    """
    metadata = {str(key): value for key, value in (error.trailing_metadata() or ())}
    code = metadata.get(ERROR_CODE_METADATA)
    if code in set(ErrorCode):
        pushback = str(metadata.get(RETRY_PUSHBACK_METADATA))
        return RefusedError(ErrorCode(code), error.details(), int(pushback) / 1000.0 if pushback.isdecimal() else None)
    status = error.code()
    if status in _FATAL_TRANSPORT and not has_joined:
        return RefusedError(ErrorCode.PROTOCOL_VERSION, f"the process at {target} is not a HERON server of this version: check --server")
    details = (error.details() or "no details").rpartition(": ")[2]
    return TransportError(f"{target} does not answer: {status.name.lower().replace('_', ' ')} ({details[:160]})")
