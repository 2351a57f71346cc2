"""No stranger holds a call slot: calls count from their headers on, have little room until they show a member's session, and never wait for ever.

gRPC's own way with a call of one message is to keep a thread until that comes. So every method is registered as one that takes a stream: its handler
runs from the headers on and asks for the message itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.process.clock import Clock
from heron_common.protocol.grpc_options import STREAMS_PER_CLIENT
from heron_common.protocol.timing import LONGEST_STALL_SECONDS, Timing
from heron_server.service.call_pool import CallPool, OpenCall, PoolFullError
from heron_server.service.seldom import SeldomWarnings

log = logging.getLogger(__name__)

STRANGERS = 64
"""Slots of calls that have shown no member's session yet, or as many as there may be clients if these are more: all may come back at once."""

WATCHERS = 8
"""Slots of health watchers, whose calls have no end."""

_WATCH = "/grpc.health.v1.Health/Watch"

_CROWDED = "strangers take all slots of calls without a session: the longest silent ones are cut off for new ones"
_CROWDED_WATCHERS = "more health watchers than there is room for: the oldest ones are cut off for new ones"
_CROWDED_MEMBERS = "clients take more call slots than they have: their longest silent calls are cut off"
_OVERDUE = "calls were cut off that sent no message, or took no answer, in time"


class CallSlots:
    """The slots of one server; thread-safe."""

    def __init__(
        self, max_clients: int, timing: Timing, clock: Clock, *, is_member: Callable[[str], bool], on_refusal: Callable[[ErrorCode], None]
    ) -> None:
        """`is_member` says whether a session is one that a client of the run has."""
        self._clock = clock
        self._is_member = is_member
        self._on_refusal = on_refusal
        self._first_message_seconds = timing.call_deadline_seconds
        self._stall_seconds = timing.stall_seconds
        self._lock = threading.Lock()
        self._strangers = CallPool(max(STRANGERS, max_clients))
        self._watchers = CallPool(WATCHERS, is_endless=True)
        # Twice what a connection has: a client that comes back has the calls of a dead one still.
        self._members = CallPool(STREAMS_PER_CLIENT * max_clients, per_holder=2 * STREAMS_PER_CLIENT)
        self._open: dict[OpenCall, None] = {}
        self._warnings = SeldomWarnings(log)

    @property
    def num_slots(self) -> int:
        """How many calls can be under way."""
        return self._strangers.capacity + self._watchers.capacity + self._members.capacity

    @contextmanager
    def hold(self, context: Any, watches: bool) -> Iterator[OpenCall]:
        """Give a call its slot, from its headers to its handler's end.

        Raises:
            RefusedError: TOO_MANY_CALLS.

        """
        call = OpenCall(context.peer(), context.cancel, self._clock.now())
        pool = self._watchers if watches else self._strangers
        self._add(pool, call)
        self._open[call] = None
        try:
            if not context.add_callback(lambda: self._open.pop(call, None)):
                self._open.pop(call, None)
            yield call
        finally:
            # What it answered may still have to be taken.
            call.waits(self._clock.now())
            with self._lock:
                for pool in (self._strangers, self._watchers, self._members):
                    pool.remove(call)

    def received(self, call: OpenCall, messages: Iterator[Any]) -> Iterator[Any]:
        """Yield what comes; the first message tells whether a member speaks."""
        while True:
            if call.has_spoken:
                call.waits(self._clock.now())
            message = next(messages, None)
            call.works()
            if message is None:
                if call.is_cancelled:
                    # A call that is cut off may look like one that ended; nobody is to be told what it lacked.
                    raise grpc.RpcError("the call was cut off")
                return
            if not call.has_spoken:
                call.has_spoken = True
                self._recognise(call, message)
            yield message

    def sent(self, call: OpenCall, answers: Iterator[Any]) -> Iterator[Any]:
        """Yield what is answered; whoever does not take it keeps the server waiting."""
        for answer in answers:
            call.waits(self._clock.now())
            yield answer
            call.works()

    def cancel_overdue(self) -> None:
        """Cut off who kept the server waiting for too long; call a few times a second."""
        now = self._clock.now()
        for call in tuple(self._open):
            since, order = call.waiting_since, call.order
            if since is None or call.is_cancelled or now - since < self._patience(call):
                continue
            # Once more: if this process stood still, what it waited for may lie in its sockets.
            if call.seen_overdue != order:
                call.seen_overdue = order
            else:
                self._warnings.warn(_OVERDUE, peer=call.peer)
                self._cut_off(call, ErrorCode.TRUNCATED)

    def _patience(self, call: OpenCall) -> float:
        if not call.has_spoken:
            return self._first_message_seconds
        # A member that computes, or whose network is slow, holds slots of its own.
        return LONGEST_STALL_SECONDS if call.is_members else self._stall_seconds

    def _recognise(self, call: OpenCall, message: Any) -> None:
        session = getattr(getattr(message, "header", message), "session", "")
        if session and self._is_member(session):
            with self._lock:
                self._strangers.remove(call)
            call.is_members, call.holder = True, session
            self._add(self._members, call)

    def _add(self, pool: CallPool, call: OpenCall) -> None:
        sentence = {self._strangers: _CROWDED, self._watchers: _CROWDED_WATCHERS}.get(pool, _CROWDED_MEMBERS)
        try:
            with self._lock:
                gone = pool.add(call)
        except PoolFullError:
            self._warnings.warn(sentence, slots=pool.capacity, peer=call.peer)
            raise RefusedError(ErrorCode.TOO_MANY_CALLS, "this server is at work on as many calls as it takes: try again", 1.0) from None
        if gone is not None:
            self._warnings.warn(sentence, slots=pool.capacity, peer=gone.peer)
            self._cut_off(gone, ErrorCode.TOO_MANY_CALLS)

    def _cut_off(self, call: OpenCall, code: ErrorCode) -> None:
        call.is_cancelled = True
        self._on_refusal(code)
        call.cancel()


class SlotInterceptor(grpc.ServerInterceptor):
    """Wraps every handler; stands inside the ones that turn errors into statuses and look at certificates, for both count from the headers on."""

    def __init__(self, slots: CallSlots) -> None:
        self._slots = slots

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        wrapped = self._wrapped(getattr(handler, kind), handler.request_streaming, handler_call_details.method == _WATCH)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(wrapped, handler.request_deserializer, handler.response_serializer)

        def single(messages: Iterator[Any], context: Any) -> Any:
            (answer,) = wrapped(messages, context)
            return answer

        return grpc.stream_unary_rpc_method_handler(single, handler.request_deserializer, handler.response_serializer)

    def _wrapped(self, behaviour: Callable[[Any, Any], Any], takes_stream: bool, watches: bool) -> Callable[[Any, Any], Iterator[Any]]:
        def answers(messages: Iterator[Any], context: Any) -> Iterator[Any]:
            with self._slots.hold(context, watches) as call:
                received = self._slots.received(call, messages)
                answered = behaviour(received if takes_stream else _only(received), context)
                yield from self._slots.sent(call, answered if hasattr(answered, "__next__") else iter((answered,)))

        return answers


def _only(messages: Iterator[Any]) -> Any:
    message = next(messages, None)
    if message is None:
        raise RefusedError(ErrorCode.TRUNCATED, "the call ended before its message: send it again")
    return message
