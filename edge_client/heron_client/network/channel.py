"""How a client reaches a server: opens the channel, seals messages, and turns what gRPC reports into errors of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from heron_common.error_catalog import ERROR_CODE_METADATA, RETRY_PUSHBACK_METADATA, ErrorCode
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.process.proxies import proxy_hint, proxy_options
from heron_common.protocol.grpc_options import channel_options
from heron_common.protocol.seal import opening, sealing
from heron_common.protocol.timing import Timing
from heron_common.protocol.wire_messages import LONGEST_WAIT_SECONDS
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingStub

if TYPE_CHECKING:
    from heron_common.files.tls_directory import Credentials

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


def open_channel(target: str, timing: Timing, credentials: Credentials | None = None) -> tuple[Any, Callable[[], None]]:
    """Return the service's stub at host:port, and what closes its channel; in clear without `credentials`."""
    options = [*channel_options(timing), *proxy_options(target)]
    if credentials is None:
        channel = grpc.insecure_channel(target, options=options)
    else:
        own = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
        channel = grpc.secure_channel(target, own, options=options)
    return SplitTrainingStub(SealingChannel(channel)), channel.close  # type: ignore[no-untyped-call]


def translate(error: Any, target: str, has_joined: bool) -> HeronError:
    """Turn a gRPC failure into ours: the catalog's code if the server sent one, else a transport failure.

    A process that knows none of our calls is no HERON server, unless it answered before: then it was the way there that garbled a call's name.
    """
    metadata = {str(key): value for key, value in (error.trailing_metadata() or ())}
    code = metadata.get(ERROR_CODE_METADATA)
    if code in set(ErrorCode):
        return RefusedError(ErrorCode(code), str(error.details() or "no details")[:1000], _pushback(metadata.get(RETRY_PUSHBACK_METADATA)))
    status = error.code()
    if status in _FATAL_TRANSPORT and not has_joined:
        return RefusedError(ErrorCode.PROTOCOL_VERSION, f"the process at {target} is not a HERON server of this version: check --server")
    # A failed handshake ends in ": OK", which it is not.
    details = (error.details() or "no details").removesuffix(": OK").rpartition(": ")[2]
    return TransportError(f"{target} does not answer: {status.name.lower().replace('_', ' ')} ({details[:160]}){proxy_hint(target)}")


def _pushback(text: object) -> float | None:
    """Return when to try again, in seconds; None if the server says nothing, or nothing that is a time to wait."""
    milliseconds = int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10 else 0
    return min(milliseconds / 1000.0, LONGEST_WAIT_SECONDS) if milliseconds else None
