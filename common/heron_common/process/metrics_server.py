"""The Prometheus endpoint of a process: `/metrics` over HTTP from a registry that is passed in."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import MetricsHandler

from heron_common.errors import ConfigurationError
from heron_common.process.process_memory import memory_limit, resident_memory

CALL_SECONDS = 10.0
"""As long as Prometheus waits by default."""

MAX_CALLS = 16
"""Scrapers and people at a time; each call has a thread."""


class MetricsServer:
    """Serves a registry until `stop` is called."""

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        *,
        call_seconds: float = CALL_SECONDS,
        max_calls: int = MAX_CALLS,
    ) -> None:
        """Start serving on host:port; port 0 takes a free one.

        A call has `call_seconds` from its first byte to the last of its answer, and beyond `max_calls` at a time others are hung up on.

        Raises:
            ConfigurationError: the port is taken.

        """
        try:
            self._server = _BoundedServer((host, port), MetricsHandler.factory(registry), call_seconds=call_seconds, max_calls=max_calls)
        except (OSError, OverflowError) as exc:
            raise ConfigurationError(
                f"cannot serve metrics on {host}:{port} ({exc}): free the port, choose another --metrics-port, or 0 for any free one"
            ) from exc
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    def stop(self) -> None:
        """Stop serving; returns when the thread has ended; safe to repeat."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _BoundedServer(ThreadingHTTPServer):
    """A thread for each call, so many at a time, each for so long: whoever asks slowly or never reads holds no thread and no memory."""

    daemon_threads = True
    # Calls under way end with the process, as they do with their deadline.
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type, *, call_seconds: float, max_calls: int) -> None:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        self._call_seconds = call_seconds
        self._max_calls = max_calls
        self._lock = threading.Lock()
        self._began: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without asking the name service what this host is called, which can take a minute."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a call, if there is room for one."""
        with self._lock:
            is_full = len(self._began) >= self._max_calls
            if not is_full:
                self._began[request] = time.monotonic()
        if is_full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Hang up on calls that take too long; called twice a second."""
        with self._lock:
            overdue = [request for request, began in self._began.items() if time.monotonic() - began > self._call_seconds]
        for request in overdue:
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """End a call."""
        with self._lock:
            self._began.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: somebody who hangs up is no error of ours."""


class ProcessMemoryCollector:
    """Exports resident and peak memory of this process and its limit, read when scraped; a process without a limit has no such sample."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def collect(self) -> Any:
        """Yield the gauges."""
        memory = resident_memory()
        yield GaugeMetricFamily(f"{self._prefix}_resident_memory_bytes", "Resident memory of this process (VmRSS).", memory.resident_bytes)
        yield GaugeMetricFamily(
            f"{self._prefix}_anonymous_memory_bytes", "Of the resident memory what is in no file (RssAnon).", memory.anonymous_bytes
        )
        yield GaugeMetricFamily(f"{self._prefix}_peak_memory_bytes", "Peak resident memory of this process (VmHWM).", memory.peak_bytes)
        yield GaugeMetricFamily(
            f"{self._prefix}_memory_limit_bytes", "Memory at which the kernel ends this process, where there is a limit.", memory_limit()
        )
