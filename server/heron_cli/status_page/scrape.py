"""One look at a process's metrics endpoint: its samples by name and labels."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from heron_common.errors import ConfigurationError, TransportError
from heron_common.process.addresses import split_host_port

TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 1 << 20
"""Twenty times what a server exports; what is longer is something else."""

_MAX_LINE = 4096
"""Reading a line takes time with the square of its length."""


@dataclass(frozen=True)
class Scrape:
    """The samples of a moment; `side` is `server` or `client`, names are given without `heron_SIDE_`."""

    side: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def value(self, name: str, **labels: str) -> float | None:
        """Return a sample, or None."""
        return self.samples.get((f"heron_{self.side}_{name}", tuple(sorted(labels.items()))))

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of a name with these labels among theirs; zero if there are none."""
        return sum(v for (n, found), v in self.samples.items() if n == f"heron_{self.side}_{name}" and labels.items() <= set(found))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the samples of a name by one label's value, without zeros."""
        values: dict[str, float] = {}
        for (found, labels), value in self.samples.items():
            if found == f"heron_{self.side}_{name}" and value:
                key = dict(labels).get(label, "")
                values[key] = values.get(key, 0.0) + value
        return values


def scrape(address: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Scrape:
    """Ask host:port for its metrics, directly; an answer has so many seconds from the first byte to the last, and a bounded size.

    Raises:
        TransportError: nobody answers in time.
        ConfigurationError: whoever answers is no HERON process.

    """
    host, port = split_host_port(address)
    end = time.monotonic() + timeout_seconds
    # No proxy: what is watched is this machine or one nearby, and no redirection is followed.
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.connect()
        with _hung_up_after(connection.sock, end - time.monotonic()):
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            status, data = answer.status, answer.read(_MAX_BYTES + 1)
    except (http.client.HTTPException, ValueError, OSError) as exc:
        if time.monotonic() >= end:
            raise TransportError(f"{address} does not answer (not whole within {timeout_seconds:g} s): {_ADVICE}") from exc
        if isinstance(exc, OSError):
            raise TransportError(f"{address} does not answer ({exc}): {_ADVICE}") from exc
        raise ConfigurationError(f"{address} does not serve metrics over HTTP ({exc or type(exc).__name__}): {_ADVICE}") from exc
    finally:
        connection.close()
    if time.monotonic() >= end:
        raise TransportError(f"{address} does not answer (not whole within {timeout_seconds:g} s): {_ADVICE}")
    if status != http.client.OK:
        raise ConfigurationError(f"{address} answers {status}, not metrics: {_ADVICE}")
    if len(data) > _MAX_BYTES:
        raise ConfigurationError(f"{address} answers more than {_MAX_BYTES} bytes, which no HERON process does: {_ADVICE}")
    return parse(data.decode("utf-8", errors="replace"), address)


@contextmanager
def _hung_up_after(connection: socket.socket, seconds: float) -> Iterator[None]:
    """End whatever waits for the other side then; a socket's own timeout begins anew with every byte."""

    def hang_up() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    overdue = threading.Timer(max(0.0, seconds), hang_up)
    overdue.daemon = True
    overdue.start()
    try:
        yield
    finally:
        overdue.cancel()


_ADVICE = "give host:port of a heron-server's or heron-client's --metrics-port"


def parse(text: str, address: str) -> Scrape:
    """Read the exposition format. Raises ConfigurationError if it is not of a HERON process."""
    if any(len(line) > _MAX_LINE for line in text.split("\n")):
        raise ConfigurationError(f"what {address} answers are no metrics (a line of more than {_MAX_LINE} characters): {_ADVICE}")
    try:
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except (ArithmeticError, LookupError, TypeError, ValueError) as exc:
        raise ConfigurationError(f"what {address} answers are no metrics ({exc}): {_ADVICE}") from exc
    for side in ("server", "client"):
        if any(name == f"heron_{side}_round" for name, _ in samples):
            return Scrape(side, samples)
    raise ConfigurationError(f"{address} serves metrics, but not of HERON: {_ADVICE}")
