"""gRPC without a network: the service's own handlers behind the call surface of its stub, messages handed over as they are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from heron_common.error_catalog import ErrorCode
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingServicer, add_SplitTrainingServicer_to_server
from heron_server.service.interceptors import ErrorInterceptor

log = logging.getLogger(__name__)


class LoopbackError(grpc.RpcError):
    """A call that ended with a status, as a client of gRPC meets it."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code = code
        self._details = details
        self._metadata = metadata

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        return self._code

    def details(self) -> str:
        """Return the sentence."""
        return self._details

    def trailing_metadata(self) -> Any:
        """Return what the server sent along with the status."""
        return self._metadata


class LoopbackContext:
    """What a handler may ask and do while it serves a call."""

    def __init__(self) -> None:
        self._cancelled = False
        self._metadata: tuple[tuple[str, str], ...] = ()

    def is_active(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self._cancelled

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return what is known of the client: nothing, there is no connection."""
        return {}

    def peer(self) -> str:
        """Return where the client is: here."""
        return "loopback"

    def cancel(self) -> bool:
        """End the call, from either side and any thread: it notices with its next message."""
        self._cancelled = True
        return True

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Send this along with the status."""
        self._metadata = metadata

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with a status; always raises."""
        raise LoopbackError(code, details, self._metadata)

    def check_active(self) -> None:
        """Raise LoopbackError CANCELLED once the call was cancelled."""
        if self._cancelled:
            raise LoopbackError(grpc.StatusCode.CANCELLED, "the call was cancelled")

    def messages(self, sent: Iterator[Any]) -> Iterator[Any]:
        """Yield what the client streams until the call is cancelled; an error in the client's own iterator ends the call as gRPC does."""
        while True:
            self.check_active()
            try:
                message = next(sent)
            except StopIteration:
                # A client that gives a stream up cancels it first: the handler must not take what came for the whole.
                self.check_active()
                return
            except Exception as exc:
                log.error("the client's stream of messages failed", exc_info=exc)
                self.cancel()
                raise LoopbackError(grpc.StatusCode.UNKNOWN, "the client's stream of messages failed") from exc
            yield message


class LoopbackCall:
    """One call. It runs on the thread that asks for its result or its messages, so that nothing waits in a queue."""

    def __init__(self, behaviour: Callable[[Any, LoopbackContext], Any], sent: Any, streams_in: bool) -> None:
        self._context = LoopbackContext()
        self._behaviour = behaviour
        self._sent = self._context.messages(iter(sent)) if streams_in else sent

    def result(self) -> Any:
        """Run a call with one answer and return it.

        Raises:
            grpc.FutureCancelledError: the call was cancelled.
            LoopbackError: it ended with another status.

        """
        try:
            self._context.check_active()
            response = self._behaviour(self._sent, self._context)
            self._context.check_active()
        except LoopbackError as exc:
            if exc.code() is grpc.StatusCode.CANCELLED:
                raise grpc.FutureCancelledError from exc
            raise
        return response

    def __iter__(self) -> Iterator[Any]:
        self._context.check_active()
        for response in self._behaviour(self._sent, self._context):
            yield response
            self._context.check_active()

    def cancel(self) -> bool:
        """Cancel the call from any thread; its caller hears of it with the next message or the answer."""
        return self._context.cancel()


def _refuse(_sent: Any, context: LoopbackContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNAVAILABLE, "the server has stopped")


class LoopbackMethod:
    """One method of the stub; deadlines are accepted and mean nothing, for nothing gets lost on the way."""

    def __init__(self, handler: Any, closed: threading.Event) -> None:
        self._closed = closed
        self._streams_in, self._streams_out = handler.request_streaming, handler.response_streaming
        name = f"{'stream' if self._streams_in else 'unary'}_{'stream' if self._streams_out else 'unary'}"
        self._behaviour = getattr(handler, name)

    def __call__(self, sent: Any, timeout: float | None = None, wait_for_ready: bool = False) -> Any:
        call = self.future(sent, timeout)
        return call if self._streams_out else call.result()

    def future(self, sent: Any, timeout: float | None = None) -> LoopbackCall:
        """Return the call without running it yet."""
        return LoopbackCall(_refuse if self._closed.is_set() else self._behaviour, sent, self._streams_in)


class LoopbackStub:
    """Has the methods of `SplitTrainingStub`, wrapped by the interceptor that the network's server has; any thread may call them."""

    def __init__(self, servicer: SplitTrainingServicer, on_refusal: Callable[[ErrorCode], None], before_answer: Callable[[], None]) -> None:
        self._interceptor = ErrorInterceptor(on_refusal, before_answer)
        self._closed = threading.Event()
        add_SplitTrainingServicer_to_server(servicer, self)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Answer no call from now on; those under way go on."""
        self._closed.set()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Take nothing: the registered handlers below are the same ones by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Take every method of the service; called by the generated registration."""
        for name in handlers:
            setattr(self, name, LoopbackMethod(self._interceptor.intercept_service(handlers.get, name), self._closed))
