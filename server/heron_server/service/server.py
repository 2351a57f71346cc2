"""Build the gRPC server: the service, standard health, a pool sized so that nobody queues in silence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from heron_common.error_catalog import ErrorCode
from heron_common.errors import ConfigurationError
from heron_common.process.addresses import join_host_port
from heron_common.process.clock import Clock
from heron_common.protocol.grpc_options import server_options
from heron_common.protocol.timing import Timing
from heron_proto.v1 import split_training_pb2
from heron_proto.v1.split_training_pb2_grpc import add_SplitTrainingServicer_to_server
from heron_server.service.call_slots import CallSlots, SlotInterceptor
from heron_server.service.descriptors import DescriptorWatch, most_connections
from heron_server.service.interceptors import ErrorInterceptor, Remembering
from heron_server.service.seals import SealInterceptor
from heron_server.service.servicer import Servicer

if TYPE_CHECKING:
    from heron_server.service.tls import ServerTls

log = logging.getLogger(__name__)

SPARE_THREADS = 8
"""For calls that are being refused or cut off."""

WAITING_CALLS = 4096
"""Calls that may wait for a thread: nobody holds one for long but those with a slot, so that a wait is short."""


class NetworkServer:
    """Listens from `start` until `stop`."""

    def __init__(
        self,
        servicer: Servicer,
        host: str,
        *,
        port: int,
        max_clients: int,
        timing: Timing,
        clock: Clock,
        is_member: Callable[[str], bool],
        on_refusal: Callable[[ErrorCode], None],
        before_answer: Callable[[], None],
        tls: ServerTls | None = None,
    ) -> None:
        """Bind to host:port, without accepting calls yet; port 0 takes a free one. Without `tls` everything travels in clear.

        `is_member` says whether a session is one that a client of the run has; `before_answer` returns when what was decided is on disk.

        Raises:
            ConfigurationError: the address cannot be bound.

        """
        self._slots = CallSlots(max_clients, timing, clock, is_member=is_member, on_refusal=on_refusal)
        self._descriptors = DescriptorWatch(clock)
        # A thread for each slot: none of the clients can take the threads of others.
        threads = self._slots.num_slots + SPARE_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
        errors = ErrorInterceptor(on_refusal, before_answer)
        guards = [tls.guard] if tls is not None else []
        interceptors: list[grpc.ServerInterceptor] = [Remembering(), errors, *guards, SlotInterceptor(self._slots), SealInterceptor()]
        self._server = grpc.server(
            self._pool,
            interceptors=interceptors,
            options=[*server_options(timing), ("grpc.max_allowed_incoming_connections", most_connections())],
            maximum_concurrent_rpcs=threads + WAITING_CALLS,
        )
        add_SplitTrainingServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        address = join_host_port(host, port)
        try:
            self.port = (
                self._server.add_secure_port(address, tls.credentials) if tls is not None else self._server.add_insecure_port(address)
            )
        except RuntimeError as exc:
            raise ConfigurationError(f"cannot listen on {address}: free the port or choose another --listen") from exc
        self.num_threads = threads

    def start(self) -> None:
        """Accept calls and report SERVING; returns at once."""
        self._server.start()
        service = split_training_pb2.DESCRIPTOR.services_by_name["SplitTraining"].full_name
        for name in ("", service):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def tick(self) -> None:
        """Cut off calls that keep the server waiting, and say so when descriptors run out; call a few times a second."""
        self._slots.cancel_overdue()
        self._descriptors.look()

    def announce_drain(self) -> None:
        """Report NOT_SERVING from now on, for good."""
        self._health.enter_graceful_shutdown()

    def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, give those under way `grace_seconds`, cut the rest; returns when all have ended; safe to repeat."""
        stopped: threading.Event = self._server.stop(grace_seconds)
        stopped.wait()
        self._pool.shutdown(wait=True)
