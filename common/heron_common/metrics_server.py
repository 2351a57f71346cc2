"""The Prometheus endpoint of a process: `/metrics` over HTTP from a registry that is passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily

from heron_common.errors import ConfigurationError
from heron_common.process_memory import memory_limit, resident_memory


class MetricsServer:
    """Serves a registry until `stop` is called."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Start serving on host:port; port 0 takes a free one.

        Raises:
            ConfigurationError: the port is taken.

        """
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except (OSError, OverflowError) as exc:
            raise ConfigurationError(
                f"cannot serve metrics on {host}:{port} ({exc}): free the port, choose another --metrics-port, or 0 for any free one"
            ) from exc
        self.port: int = self._server.server_port

    def stop(self) -> None:
        """Stop serving; returns when the thread has ended; safe to repeat."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class ProcessMemoryCollector:
    """Exports resident and peak memory of this process and its limit, read when scraped; a process without a limit has no such sample."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def collect(self) -> Any:
        """Yield the gauges."""
        memory = resident_memory()
        yield GaugeMetricFamily(f"{self._prefix}_resident_memory_bytes", "Resident memory of this process (VmRSS).", memory.resident_bytes)
        yield GaugeMetricFamily(f"{self._prefix}_peak_memory_bytes", "Peak resident memory of this process (VmHWM).", memory.peak_bytes)
        yield GaugeMetricFamily(
            f"{self._prefix}_memory_limit_bytes", "Memory at which the kernel ends this process, where there is a limit.", memory_limit()
        )


class CallbackGauge:
    """A gauge whose value is asked for when scraped."""

    def __init__(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        self._name = name
        self._documentation = documentation
        self._read = read

    def collect(self) -> Any:
        """Yield the gauge."""
        yield GaugeMetricFamily(self._name, self._documentation, self._read())
