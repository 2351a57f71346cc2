"""Lets only admitted certificates speak: checked before every call, health included, and again with every message of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from heron_server.certificates.admission import Admission
from heron_server.service.identity import certificate_of
from heron_server.service.interceptors import rewrapped


class CertificateGuard(grpc.ServerInterceptor):
    """Raises the refusals of `Admission`; stands inside the interceptor that turns them into statuses."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        call: str = handler_call_details.method.rpartition("/")[2]
        handler = continuation(handler_call_details)
        if handler is None:
            return None

        def check(context: Any) -> None:
            self._admission.check(certificate_of(context), call)

        def messages(request: Any, context: Any) -> Any:
            return self._checked(request, context, check) if handler.request_streaming else request

        def unary(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            def answer(request: Any, context: Any) -> Any:
                check(context)
                return behaviour(messages(request, context), context)

            return answer

        def stream(behaviour: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
            def answers(request: Any, context: Any) -> Iterator[Any]:
                check(context)
                yield from self._checked(behaviour(messages(request, context), context), context, check)

            return answers

        return rewrapped(handler, unary, stream)

    @staticmethod
    def _checked(sent: Iterator[Any], context: Any, check: Callable[[Any], None]) -> Iterator[Any]:
        for message in sent:
            check(context)
            yield message
