"""The gRPC calls under way, so that another thread can cancel them all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from heron_common.errors import TransportError
from heron_common.protocol.seal import Damaged


class OpenCalls:
    """Safe to use from several threads; once cancelled, every later call is cancelled as it begins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[Any] = set()
        self._cancelled = False

    def result(self, call: Any) -> Any:
        """Wait for the response of a unary call.

        Raises:
            TransportError: it arrived damaged.
            grpc.RpcError, grpc.FutureCancelledError: the call failed or was cancelled.

        """
        with self._registered(call):
            return _undamaged(call.result())

    def responses(self, call: Any) -> Iterator[Any]:
        """Yield the responses of a stream as they come; raises as `result` does."""
        with self._registered(call):
            for response in call:
                yield _undamaged(response)

    def cancel(self) -> None:
        """Cancel every call under way and every later one; safe to repeat."""
        with self._lock:
            self._cancelled = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    @contextmanager
    def _registered(self, call: Any) -> Iterator[None]:
        with self._lock:
            self._calls.add(call)
            cancelled = self._cancelled
        if cancelled:
            call.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._calls.discard(call)


def _undamaged(response: Any) -> Any:
    if isinstance(response, Damaged):
        raise TransportError("an answer's bytes are not the ones that were sent")
    return response
