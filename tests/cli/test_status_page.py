"""`heron status` and `heron health` without a run: pages from registries, and what is said where nobody or somebody else answers."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from heron_cli.cli import main
from heron_cli.status_page.page import rows_of
from heron_cli.status_page.scrape import parse, scrape
from heron_client.metrics import ClientMetrics
from heron_common.errors import ConfigurationError, TransportError
from heron_common.exit_codes import ExitCode
from heron_common.process.metrics_server import MetricsServer
from heron_server.metrics import ServerMetrics
from tests.harness.cluster import free_port


def page(registry: CollectorRegistry) -> dict[str, str]:
    return dict(rows_of(parse(generate_latest(registry).decode(), "here:1")))


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_a_servers_page_adds_up_what_has_labels_and_names_reasons(registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry, lambda: 1500.0, Path.cwd())
    metrics.phase("training")
    for gauge, value in ((metrics.planned_rounds, 100), (metrics.round, 11), (metrics.expected_clients, 4), (metrics.connected_clients, 3)):
        gauge.set(value)
    metrics.cohort_size.set(2)
    metrics.rounds_completed.inc(11)
    metrics.evaluation_accuracy.set(0.975)
    metrics.spool_budget_bytes.set(1e6)
    for kind, count in (("activations", 2e6), ("update", 5e5)):
        metrics.bytes.labels(direction="up", kind=kind).inc(count)
    metrics.bytes.labels(direction="down", kind="weights").inc(7)
    metrics.dropped_clients.labels(reason="silent").inc()
    metrics.rejections.labels(reason="round_over").inc(2)
    metrics.rejections.labels(reason="non_finite").inc(5)
    shown = page(registry)
    assert (shown["phase"], shown["round"]) == ("training", "12 of 100")
    assert shown["clients"] == "3 of 4 connected, 2 in this round"
    assert shown["test accuracy"] == "97.50%"
    assert "test perplexity" not in shown
    assert shown["bytes up, down"] == "2.5 MB, 7 B"
    assert (shown["dropped"], shown["refused"]) == ("1 silent", "5 non_finite, 2 round_over")
    assert shown["spool"] == "1.5 kB of 1 MB"
    assert shown["attention"] == "fewer clients than expected"


def test_a_server_that_has_completed_nothing_shows_no_results(registry: CollectorRegistry) -> None:
    ServerMetrics(registry, lambda: 0.0, Path.cwd())
    shown = page(registry)
    assert shown["phase"] == "waiting" and not {"test accuracy", "test loss", "server loss"} & set(shown)
    assert shown["dropped"] == "none"


def test_troubles_are_named(registry: CollectorRegistry) -> None:
    metrics = ServerMetrics(registry, lambda: 95.0, Path.cwd())
    metrics.spool_budget_bytes.set(100)
    metrics.diverged.set(1)
    metrics.checkpoint_failures.inc()
    metrics.log_mismatches.inc()
    troubles = "the front diverged and rests; checkpoints failed: 1; the spool is nearly full; replays did not arrive"
    assert page(registry)["attention"] == troubles


def test_a_clients_page(registry: CollectorRegistry) -> None:
    metrics = ClientMetrics(registry)
    metrics.phase("training")
    metrics.step_done(0, 0.25, 2.0)
    metrics.step_done(1, 0.5, 4.0)
    shown = page(registry)
    assert (shown["phase"], shown["steps"], shown["local loss"]) == ("training", "2, 3 s each", "0.5000")


def test_nobody_somebody_else_and_another_program_are_told_apart() -> None:
    with pytest.raises(TransportError, match="does not answer"):
        scrape(f"127.0.0.1:{free_port()}")
    other = CollectorRegistry()
    Gauge("node_load", "Not of ours.", registry=other)
    with pytest.raises(ConfigurationError, match="not of HERON"):
        parse(generate_latest(other).decode(), "here:1")
    with pytest.raises(ConfigurationError, match="no metrics"):
        parse("<html>hello</html>", "here:1")


@pytest.fixture
def web_server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_exit_codes_tell_probes_what_answers(web_server: str, registry: CollectorRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    ServerMetrics(registry, lambda: 0.0, Path.cwd())
    endpoint = MetricsServer(registry, "127.0.0.1", 0)
    try:
        assert main(["status", f"127.0.0.1:{endpoint.port}", "--once"]) == ExitCode.OK
        # Not a terminal: one page without being told.
        assert main(["status", f"127.0.0.1:{endpoint.port}"]) == ExitCode.OK
    finally:
        endpoint.stop()
    assert capsys.readouterr().out.count("attention") == 2
    assert main(["status", f"127.0.0.1:{endpoint.port}", "--once"]) == ExitCode.UNREACHABLE
    assert main(["status", web_server, "--once"]) == ExitCode.CONFIGURATION
    assert main(["status", "nonsense", "--once"]) == ExitCode.CONFIGURATION
    assert main(["health", f"127.0.0.1:{endpoint.port}"]) == ExitCode.UNREACHABLE


_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "pydantic", "onnx", "safetensors", "cryptography", "grpc_health", "numpy"}:
            raise ImportError(f"{name} is blocked in this test")

sys.meta_path.insert(0, Blocked())
from heron_cli.status import add_parser, run_status
"""


def test_status_needs_nothing_that_a_device_does_not_have(tmp_path: Path) -> None:
    """The whole command too, numpy aside, which a device has."""
    for last in ("", "import heron_cli.cli\n"):
        script = _BLOCKED.replace(', "numpy"', "") + last if last else _BLOCKED
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
