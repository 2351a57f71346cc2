"""How a client reaches a server: opens the channel, and turns what gRPC reports into errors of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from heron_common.error_catalog import ERROR_CODE_METADATA, RETRY_PUSHBACK_METADATA, ErrorCode
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.grpc_options import channel_options
from heron_common.wire import LONGEST_WAIT_SECONDS
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingStub

if TYPE_CHECKING:
    from heron_common.tls_directory import Credentials

_FATAL_TRANSPORT = {grpc.StatusCode.UNIMPLEMENTED}


def open_channel(target: str, credentials: Credentials | None = None) -> tuple[Any, Callable[[], None]]:
    """Return the service's stub at host:port, and what closes its channel; in clear without `credentials`."""
    if credentials is None:
        channel = grpc.insecure_channel(target, options=channel_options())
    else:
        own = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
        channel = grpc.secure_channel(target, own, options=channel_options())
    return SplitTrainingStub(channel), channel.close  # type: ignore[no-untyped-call]


def translate(error: Any, target: str) -> HeronError:
    """Turn a gRPC failure into ours: the catalog's code if the server sent one, else a transport failure."""
    metadata = {str(key): value for key, value in (error.trailing_metadata() or ())}
    code = metadata.get(ERROR_CODE_METADATA)
    if code in set(ErrorCode):
        return RefusedError(ErrorCode(code), str(error.details() or "no details")[:1000], _pushback(metadata.get(RETRY_PUSHBACK_METADATA)))
    status = error.code()
    if status in _FATAL_TRANSPORT:
        return RefusedError(ErrorCode.PROTOCOL_VERSION, f"the process at {target} is not a HERON server of this version: check --server")
    # A failed handshake ends in ": OK", which it is not.
    details = (error.details() or "no details").removesuffix(": OK").rpartition(": ")[2]
    return TransportError(f"{target} does not answer: {status.name.lower().replace('_', ' ')} ({details[:160]})")


def _pushback(text: object) -> float | None:
    """Return when to try again, in seconds; None if the server says nothing, or nothing that is a time to wait."""
    milliseconds = int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10 else 0
    return min(milliseconds / 1000.0, LONGEST_WAIT_SECONDS) if milliseconds else None
