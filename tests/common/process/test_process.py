"""What a process shows of itself: memory from the kernel, metrics over HTTP, bytes for people, signals."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from heron_common.errors import ConfigurationError
from heron_common.exit_codes import ExitCode
from heron_common.process.metrics_server import MetricsServer, ProcessMemoryCollector
from heron_common.process.process_memory import ResidentMemory, memory_limit, resident_memory
from heron_common.process.signals import stop_on_signals
from heron_common.terminal.console import LiveConsole
from heron_common.terminal.figures import human_bytes

pytestmark = pytest.mark.process

HOST = "127.0.0.1"
SLACK = 1 << 20
"""The kernel keeps resident pages in per-thread counters and may be some dozens of pages behind."""


def test_the_peak_is_at_least_what_is_resident_now_and_a_python_process_has_megabytes() -> None:
    memory = resident_memory()
    assert 5_000_000 < memory.resident_bytes <= memory.peak_bytes < 100_000_000_000


def test_touched_memory_raises_what_is_resident_and_the_peak_never_falls() -> None:
    before = resident_memory()
    block = np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8)
    block[:] = 1
    during = resident_memory()
    assert during.resident_bytes - before.resident_bytes > 0.9 * block.nbytes
    del block
    after = resident_memory()
    assert after.peak_bytes >= during.resident_bytes - SLACK
    assert after.resident_bytes < during.resident_bytes - SLACK


def test_a_process_by_its_number_is_the_same_as_self() -> None:
    assert resident_memory(os.getpid()).peak_bytes == pytest.approx(resident_memory("self").peak_bytes, abs=SLACK)


def test_a_process_that_does_not_exist_has_no_memory() -> None:
    assert resident_memory(2**30) == ResidentMemory(0, 0)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1 kB"), (1234567, "1.23 MB"), (12_345, "12.3 kB"), (5e9, "5 GB")]
)
def test_bytes_are_written_for_people_in_decimal_units(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize("count", [999.7, 999_499, 999_500, 999_999, 999_999_999, 1e12, 1.234e12, 5e15])
def test_bytes_for_people_never_have_an_exponent_and_agree_with_the_count(count: float) -> None:
    text = human_bytes(count)
    number, unit = text.split()
    assert "e" not in number
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(number) * factor == pytest.approx(count, rel=0.005)
    assert not (unit == "B" and float(number) >= 1000)


def test_the_live_console_shows_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveConsole("heron-client", lambda: [("round", "3 of 60"), ("loss", "0.42")]):
        pass
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("heron-client", "round", "3 of 60", "0.42"))


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[MetricsServer]:
    server = MetricsServer(registry, HOST, 0)
    yield server
    server.stop()


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_a_scrape_over_http_reads_the_registry_that_was_passed_in(registry: CollectorRegistry, endpoint: MetricsServer) -> None:
    counter = Counter("uploads", "Uploads.", ["reason"], registry=registry)
    level = [1.5]
    Gauge("queue_bytes", "Bytes that wait.", registry=registry).set_function(lambda: level[0])
    counter.labels(reason="trained").inc(3)
    assert endpoint.port > 0
    assert (scrape(endpoint.port)['uploads_total{reason="trained"}'], scrape(endpoint.port)["queue_bytes"]) == (3.0, 1.5)
    level[0] = 7.0
    assert scrape(endpoint.port)["queue_bytes"] == 7.0


def test_process_memory_is_read_at_every_scrape(registry: CollectorRegistry, endpoint: MetricsServer) -> None:
    registry.register(ProcessMemoryCollector("heron_client"))  # type: ignore[arg-type]
    first = scrape(endpoint.port)
    # Of the kernel, not of the heap: after other tests that may have room enough in pages that count already.
    block = np.frombuffer(mmap.mmap(-1, 32 << 20), np.uint8)
    block[:] = 1
    second = scrape(endpoint.port)
    assert second["heron_client_resident_memory_bytes"] - first["heron_client_resident_memory_bytes"] > 0.9 * block.nbytes
    assert second["heron_client_peak_memory_bytes"] >= second["heron_client_resident_memory_bytes"]


def test_a_taken_port_is_a_configuration_error_with_the_remedy(endpoint: MetricsServer) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot serve metrics on {HOST}:{endpoint.port} .*--metrics-port, or 0"):
        MetricsServer(CollectorRegistry(), HOST, endpoint.port)


@pytest.mark.parametrize(("host", "port"), [("203.0.113.1", 0), (HOST, -1)])
def test_an_address_that_cannot_be_served_is_a_configuration_error(host: str, port: int) -> None:
    with pytest.raises(ConfigurationError, match="cannot serve metrics on"):
        MetricsServer(CollectorRegistry(), host, port)


def test_a_port_that_does_not_exist_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="cannot serve metrics on"):
        MetricsServer(CollectorRegistry(), HOST, 70000)


def test_stopping_frees_the_port_and_may_be_repeated(registry: CollectorRegistry) -> None:
    server = MetricsServer(registry, HOST, 0)
    server.stop()
    server.stop()
    with pytest.raises(urllib.error.URLError):
        scrape(server.port)
    with socket.create_server((HOST, server.port)):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    stop = threading.Event()
    with stop_on_signals(stop):
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.wait(10)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_second_signal_forces_the_end_with_its_own_exit_code() -> None:
    script = (
        "import signal, threading\n"
        "from heron_common.process.signals import stop_on_signals\n"
        "with stop_on_signals(threading.Event()):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('stopping', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (ExitCode.FORCED, "stopping\n")


@pytest.mark.parametrize(("seconds", "ends"), [(0.1, "itself"), (60, "forced")])
def test_what_cannot_be_interrupted_ends_with_the_process_and_what_ends_goes_on(seconds: float, ends: str) -> None:
    script = (
        "import threading, time\n"
        "from heron_common.process.signals import ending_within\n"
        "stop = threading.Event()\n"
        "with ending_within(2.0, stop):\n"
        "    stop.set()\n"
        f"    time.sleep({seconds})\n"
        "print('itself')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=40)
    assert ended.returncode == 0 and ("itself" in ended.stdout) is (ends == "itself")


def test_off_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def run() -> None:
        with stop_on_signals(threading.Event()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_memory_limit_is_the_smallest_of_the_control_groups_around_a_process_and_none_without_one(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    own = groups / "system.slice" / "heron-client.service"
    for folder in (proc / "self", own):
        folder.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 4 kB\n")
    (proc / "self" / "cgroup").write_text("0::/system.slice/heron-client.service\n")
    (own / "memory.max").write_text("max\n")
    assert memory_limit(proc, groups) is None
    (own.parent / "memory.max").write_text("5000\n")
    assert memory_limit(proc, groups) == 5000
    (own / "memory.max").write_text("7000\n")
    assert memory_limit(proc, groups) == 5000
