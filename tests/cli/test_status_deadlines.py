"""Whoever answers drop by drop, without end or not at all holds neither `heron status` nor its memory; and no scraper holds the endpoint."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Gauge

from heron_cli import health
from heron_cli.cli import main
from heron_cli.status_page.scrape import scrape
from heron_common.errors import ConfigurationError, HeronError, TransportError
from heron_common.exit_codes import ExitCode
from heron_common.process.metrics_server import MetricsServer
from heron_common.process.process_memory import resident_memory
from tests.harness.polling import eventually

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a request and answers as it likes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    try:
                        answer(connection)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def dripping(before: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(drop)
            time.sleep(0.02)

    return answer


def flooding(before: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(b"heron_server_round 1\n" * 5000)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        dripping(b"", b"H"),
        dripping(b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(HEAD, b"#"),
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n#\r\n"),
        lambda connection: time.sleep(5),
    ],
    ids=["status line", "header", "continue", "body", "chunks", "silence"],
)
def test_an_answer_has_a_deadline_from_its_first_byte_to_its_last(answer: Callable[[socket.socket], None]) -> None:
    with answering(answer) as address:
        began = time.monotonic()
        with pytest.raises(TransportError, match="does not answer"):
            scrape(address, timeout_seconds=0.5)
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("drop", [b"\x00", b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"HTTP/1.1 200 OK\r\n"])
def test_heron_health_has_a_deadline_too(drop: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(health, "TIMEOUT_SECONDS", 0.5)
    with answering(dripping(b"", drop)) as address:
        began = time.monotonic()
        assert main(["health", address]) == ExitCode.UNREACHABLE
        assert time.monotonic() - began < 5
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("head", [HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"])
def test_an_answer_without_end_is_given_up_at_a_size(head: bytes) -> None:
    before = resident_memory().peak_bytes
    with answering(flooding(head)) as address, pytest.raises(ConfigurationError, match="answers more than 1048576 bytes"):
        scrape(address)
    assert resident_memory().peak_bytes - before < 64 << 20


def test_a_line_that_would_take_hours_to_read_is_refused() -> None:
    line = b"heron_server_round{" + b'a="b",' * 100_000 + b"} 1\n"

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + line)

    began = time.monotonic()
    with answering(answer) as address, pytest.raises(ConfigurationError, match="a line of more than"):
        scrape(address)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("reply", [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", b"nonsense\r\n\r\n", b""])
def test_what_is_no_answer_is_a_sentence(reply: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(reply)

    with answering(answer) as address, pytest.raises(HeronError, match=address):
        scrape(address, timeout_seconds=2)


def test_no_proxy_is_asked_for_a_process_nearby(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    registry = CollectorRegistry()
    Gauge("heron_server_round", "x", registry=registry).set(3)
    endpoint = MetricsServer(registry, "127.0.0.1", 0)
    try:
        assert scrape(f"127.0.0.1:{endpoint.port}").value("round") == 3
    finally:
        endpoint.stop()


@pytest.fixture
def endpoint() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    gauge = Gauge("heron_server_round", "x" * 1000, ["name"], registry=registry)
    # More than the buffers of a connection take.
    for number in range(30_000):
        gauge.labels(f"{number:0100}").set(1)
    server = MetricsServer(registry, "127.0.0.1", 0, call_seconds=1.0, max_calls=4)
    yield server
    server.stop()


def test_scrapers_that_never_read_or_ask_slowly_hold_no_thread(endpoint: MetricsServer) -> None:
    before = threading.active_count()
    requests = [b"GET /metrics HTTP/1.0\r\n\r\n", b"GET /metrics HTTP/1.0\r\n\r\n", b"GET /met", b""]
    held = []
    for request in requests:
        connection = socket.create_connection(("127.0.0.1", endpoint.port))
        connection.sendall(request)
        held.append(connection)
    eventually(lambda: threading.active_count() >= before + len(requests), 20, "a thread for each")
    # Who comes beyond that is hung up on at once, and costs nobody a thread.
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=10) as further:
        assert further.recv(1) == b""
    eventually(lambda: threading.active_count() == before, 20, "the end of their threads")
    for connection in held:
        connection.close()
