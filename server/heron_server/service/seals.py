"""Seals what the service sends, and refuses what arrives with a broken seal before anybody interprets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.protocol.seal import Damaged, Unparsable, forgiving, opening, sealing
from heron_common.version import PROTOCOL_VERSION

_SERVICE = "/heron.v1."
"""Health checks come from tools that know no seals."""


class SealInterceptor(grpc.ServerInterceptor):
    """Wraps the handlers of our service; stands behind the interceptor that turns refusals into statuses."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        is_ours = handler_call_details.method.startswith(_SERVICE)
        for streams_in in (False, True):
            for streams_out in (False, True):
                name = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
                behaviour = getattr(handler, name)
                if behaviour is not None:
                    make = getattr(grpc, f"{name}_rpc_method_handler")
                    checking, parse, write = (
                        _checking(behaviour, streams_in, streams_out),
                        handler.request_deserializer,
                        handler.response_serializer,
                    )
                    if is_ours:
                        return make(checking, opening(parse, _speaks_another_version), sealing(write))
                    return make(checking, forgiving(parse), write)
        return handler


def _speaks_another_version(message: Any) -> bool:
    """A join of a version without seals is let in, to hear which version it should have."""
    return getattr(message, "protocol_version", PROTOCOL_VERSION) != PROTOCOL_VERSION


def _checking(behaviour: Callable[[Any, Any], Any], streams_in: bool, streams_out: bool) -> Callable[[Any, Any], Any]:
    def call(request: Any, context: Any) -> Any:
        return behaviour(_whole_ones(request) if streams_in else _whole(request), context)

    def stream(request: Any, context: Any) -> Iterator[Any]:
        yield from call(request, context)

    return stream if streams_out else call


def _whole_ones(messages: Iterator[Any]) -> Iterator[Any]:
    for message in messages:
        yield _whole(message)


def _whole(message: Any) -> Any:
    if isinstance(message, Unparsable):
        raise RefusedError(
            ErrorCode.MALFORMED, "a message is none that this call takes: update the client, or look at what is between it and the server"
        )
    if isinstance(message, Damaged):
        raise RefusedError(ErrorCode.DIGEST_MISMATCH, "the bytes of a message are not the ones that were sent: send it again")
    return message
