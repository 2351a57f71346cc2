"""What every call has in common: nothing leaves before it is on disk, and errors become gRPC statuses.

Refusals have the catalog's status and sentence, anything else is INTERNAL without details.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from heron_common.error_catalog import CATALOG, ERROR_CODE_METADATA, ErrorCode
from heron_common.errors import RefusedError, StorageError
from heron_server.service.retry_info import retry_metadata
from heron_server.service.seldom import SeldomWarnings

log = logging.getLogger(__name__)

_warnings = SeldomWarnings(log)


Unary = Callable[[Any, Any], Any]
Stream = Callable[[Any, Any], Iterator[Any]]
"""Behaviours that answer with one message, or with many."""


def rewrapped(handler: Any, wrap_unary: Callable[[Unary], Unary], wrap_stream: Callable[[Stream], Stream]) -> Any:
    """Return a handler whose behaviour, whatever its kind, is wrapped; the rest is the handler's."""
    name = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    behaviour = getattr(handler, name)
    wrapped = wrap_stream(behaviour) if handler.response_streaming else wrap_unary(behaviour)
    return getattr(grpc, f"{name}_rpc_method_handler")(wrapped, handler.request_deserializer, handler.response_serializer)


class Remembering(grpc.ServerInterceptor):
    """Asks the interceptors behind it once for each method: what they wrap depends on nothing else, and wrapping costs as much as a small call."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            handler = continuation(handler_call_details)
            # A method that does not exist is the caller's to name, and there is no end of names.
            if handler is not None:
                self._handlers[method] = handler
        return handler


class ErrorInterceptor(grpc.ServerInterceptor):
    """Wraps every handler; `on_refusal` is told each refusal's code.

    `before_answer` is called before each of a call's answers, refusals included: it returns when everything that was decided so far is on disk, so that
    no client ever knows what a crash could make the server forget.
    """

    def __init__(self, on_refusal: Callable[[ErrorCode], None], before_answer: Callable[[], None]) -> None:
        self._on_refusal = on_refusal
        self._before_answer = before_answer

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        return None if handler is None else rewrapped(handler, self._wrap_unary, self._wrap_stream)

    def _wrap_unary(self, behaviour: Unary) -> Unary:
        def call(request: Any, context: Any) -> Any:
            try:
                response = behaviour(request, context)
                self._sync()
                return response
            except Exception as exc:
                self._abort(context, exc)

        return call

    def _wrap_stream(self, behaviour: Stream) -> Stream:
        def call(request: Any, context: Any) -> Iterator[Any]:
            try:
                # Before each answer, not only the first: that may have been a sign that the true one is still to come.
                for response in behaviour(request, context):
                    self._sync()
                    yield response
                self._sync()
            except Exception as exc:
                self._abort(context, exc)

        return call

    def _sync(self) -> None:
        try:
            self._before_answer()
        except StorageError as exc:
            _warnings.warn(str(exc))
            raise RefusedError(ErrorCode.STORAGE, f"{exc}: send it again later", 1.0) from exc

    def _abort(self, context: Any, error: Exception) -> NoReturn:
        if isinstance(error, grpc.RpcError) or not context.is_active():
            # The client is gone, or we cut its stream: there is nobody to tell, and nothing to log.
            context.abort(grpc.StatusCode.CANCELLED, "the call was cancelled")
        if isinstance(error, NotImplementedError):
            # What gRPC's generated code raises for a method that nobody wrote, such as the list of health's services.
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server has no such method")
        if not isinstance(error, RefusedError):
            log.error("unexpected error in a call", exc_info=error)
            error = RefusedError(ErrorCode.INTERNAL, "the server met an unexpected error; its log has the details", 1.0)
        if error.code is not ErrorCode.STORAGE:
            try:
                self._sync()
            except RefusedError as exc:
                error = exc
        self._on_refusal(error.code)
        if error.code is ErrorCode.MALFORMED:
            _warnings.warn("refused messages that no client of ours sends", peer=context.peer())
        log.debug("request refused", extra={"code": error.code.value, "reason": error.sentence})
        context.set_trailing_metadata(((ERROR_CODE_METADATA, error.code.value), *retry_metadata(error)))
        context.abort(grpc.StatusCode[CATALOG[error.code].grpc_status], error.sentence)
        raise AssertionError("abort raises")
