"""A real Prometheus with the committed rules watches a real server and its clients: every query runs, and a killed client raises an alert."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.watching.alert_rules import ALERTS
from deploy.watching.catalogue import catalogue
from deploy.watching.panels import ROWS
from heron_cli.processes import LoggedProcess
from heron_common.exit_codes import ExitCode
from heron_server.certificates.authority import Authority
from tests.deploy.programs import DEPLOY, program, run
from tests.harness.certificates import issued
from tests.harness.cluster import Cluster, free_port, log_of
from tests.harness.interrupts import heed_interrupts
from tests.harness.polling import eventually
from tests.harness.simulated import TINY_FRONT

ENDLESS_ROUNDS = 1_000_000


@dataclass(frozen=True)
class Watched:
    """A run with mutual TLS and the Prometheus that scrapes it."""

    cluster: Cluster
    authority: Authority
    clients: list[LoggedProcess]
    client_endpoints: list[str]
    prometheus: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of Prometheus' API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.prometheus}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def vector(self, query: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        result: list[dict[str, Any]] = self.ask("query", query=query)["result"]
        return result


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    prometheus, promtool = program("prometheus", "prometheus"), program("promtool", "prometheus")
    directory = tmp_path_factory.mktemp("watched")
    authority = Authority.create(directory / "authority", ["127.0.0.1"])
    with Cluster(directory) as cluster:
        few = {"preset": "frozen", "model_options": TINY_FRONT, "local_steps": 1, "eval_data": "digits:test", "keep_checkpoints": 1}
        cluster.server(rounds=ENDLESS_ROUNDS, min_updates=1, liveness_seconds=3, tls_dir=authority.server_directory, **few)
        endpoints = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        folders = [issued(authority, f"device-{index}") for index in range(2)]
        clients = [
            cluster.client(i, 2, name=None, shard=f"{i}/2", tls_dir=folders[i], metrics_port=endpoints[i].partition(":")[2])
            for i in range(2)
        ]
        configuration = write_configuration(directory, cluster.metrics_address(), endpoints)
        checked = run(promtool, "check", "config", configuration)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        listen = f"127.0.0.1:{free_port()}"
        storage = f"--storage.tsdb.path={directory / 'storage'}"
        process = cluster.start_command(
            "prometheus", [prometheus, f"--config.file={configuration}", storage, f"--web.listen-address={listen}", "--log.level=warn"]
        )
        found = Watched(cluster, authority, clients, endpoints, listen)
        eventually(lambda: answers(found), 60, f"Prometheus ({log_of(process)[-500:]})")
        eventually(lambda: len(found.vector("heron_client_rounds_completed_total > 0")) == 2, 90, "both clients in Prometheus")
        eventually(lambda: found.vector("heron_server_rounds_completed_total > 3"), 60, "rounds in Prometheus")
        yield found


def write_configuration(directory: Path, server: str, clients: list[str]) -> Path:
    """Write the committed configuration with this run's targets, a second between scrapes, and alerts that need not hold for minutes."""
    configuration = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job, targets in zip(configuration["scrape_configs"], ([server], clients), strict=True):
        job["static_configs"] = [{"targets": targets}]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    rules, count = re.subn(r"for: \d+m$", "for: 0s", (DEPLOY / "prometheus/alerts.yml").read_text(), flags=re.MULTILINE)
    assert count == len(ALERTS)
    (directory / "alerts.yml").write_text(rules)
    return path


def answers(watched: Watched) -> bool:
    try:
        return bool(watched.ask("status/buildinfo"))
    except OSError:
        return False


def test_prometheus_gets_every_metric_of_the_catalogue(watched: Watched) -> None:
    names = {
        series["__name__"] for side in ("server", "client") for series in watched.ask("series", **{"match[]": f'{{job="heron-{side}"}}'})
    }
    # A counter with labels exists once something was counted, and a limit where there is one.
    always = {m.series[0] for m in catalogue() if (not m.labels or "phase" in m.labels) and not m.name.endswith("memory_limit_bytes")}
    assert always - names == set()
    assert {"heron_server_bytes_total", "heron_client_bytes_total", "heron_server_uploads_total"} <= names


def test_every_panel_of_the_dashboard_can_be_asked_for_and_those_of_the_run_have_values(watched: Watched) -> None:
    for row in ROWS:
        for panel in row.panels:
            for query in panel.queries:
                expression = query.expression.replace("$__rate_interval", "30s").replace("$server", ".*").replace("$client", ".*")
                values = watched.vector(expression)
                assert values or row.title != "Run", query


def test_the_status_of_a_run_on_one_page(watched: Watched) -> None:
    for address, expected in (
        (watched.cluster.metrics_address(), "2 of 2 connected"),
        (watched.client_endpoints[0], "completed by this process"),
    ):
        result = run(sys.executable, "-m", "heron_cli", "status", address, "--once")
        assert result.returncode == 0 and expected in result.stdout, result.stdout + result.stderr


def test_on_a_terminal_the_status_is_redrawn_until_an_interrupt(watched: Watched) -> None:
    control, terminal = pty.openpty()
    words = [sys.executable, "-m", "heron_cli", "status", watched.cluster.metrics_address(), "--interval-seconds", "0.1"]
    files = {"stdin": terminal, "stdout": terminal, "stderr": subprocess.STDOUT}
    with ExitStack() as ending:
        process = subprocess.Popen(words, **files, env={**os.environ, "TERM": "xterm"}, preexec_fn=heed_interrupts)
        ending.callback(process.wait)
        ending.callback(process.kill)
        os.close(terminal)
        shown = ""
        end = time.monotonic() + 60
        while len(set(re.findall(r"(\d+) completed", shown))) < 3:
            assert time.monotonic() < end and process.poll() is None, shown
            if select.select([control], [], [], 0.1)[0]:
                shown += os.read(control, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == ExitCode.OK
    os.close(control)


def test_the_health_of_a_server_with_mutual_tls(watched: Watched) -> None:
    folder = issued(watched.authority, "probe")
    asked = [sys.executable, "-m", "heron_cli", "health", watched.cluster.address]
    allowed, stranger = run(*asked, "--tls-dir", folder), run(*asked)
    assert (allowed.returncode, allowed.stdout.strip()) == (ExitCode.OK, "serving"), allowed.stderr
    assert stranger.returncode == ExitCode.UNREACHABLE and "does not answer" in stranger.stderr
    watched.authority.revoke("probe")
    assert run(*asked, "--tls-dir", folder).returncode == ExitCode.REFUSED


def test_a_killed_client_raises_the_alerts(watched: Watched) -> None:
    """Last: it costs the run a client."""
    ours = {"HeronClientsLost", "HeronClientDown", "HeronServerDown", "HeronDiverged", "HeronCheckpointFailures"}
    assert watched.firing() & ours == set()
    watched.clients[1].process.kill()
    eventually(lambda: {"HeronClientsLost", "HeronClientDown"} <= watched.firing(), 30, "the alerts")
    alerts = {alert["labels"]["alertname"]: alert for alert in watched.ask("alerts")["alerts"]}
    assert alerts["HeronClientDown"]["labels"]["instance"] == watched.client_endpoints[1]
    assert alerts["HeronClientsLost"]["annotations"]["summary"].startswith("1 clients are connected")
    assert not {"HeronServerDown", "HeronDiverged"} & watched.firing()
