"""Promises between the parts: stubs match contracts, every RPC has two sides, metrics are served, documents name what exists."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from heron_client.network.transport import Transport
from heron_proto.v1 import split_training_pb2
from heron_server.service.servicer import Servicer
from tests.harness.cluster import Cluster, free_port, log_of, wait_for_exit
from tests.harness.polling import eventually
from tests.harness.sources import ROOT, folder_of

STUBS = ("split_training_pb2.py", "split_training_pb2.pyi", "split_training_pb2_grpc.py")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the stubs' compiler, the oldest that will do, has no wheel for this Python")
def test_the_committed_stubs_are_what_the_contracts_generate(tmp_path: Path) -> None:
    committed = folder_of("heron_proto")
    command = [
        sys.executable,
        str(ROOT / "deploy" / "release" / "stubs.py"),
        "--contracts",
        str(committed.parent),
        "--output",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=120)
    for name in STUBS:
        generated = (tmp_path / "heron_proto" / "v1" / name).read_text()
        assert generated == (committed / "v1" / name).read_text(), f"{name} differs: run `make proto` and commit"


def test_every_rpc_is_served_and_called() -> None:
    rpcs = [method.name for method in split_training_pb2.DESCRIPTOR.services_by_name["SplitTraining"].methods]
    assert rpcs == ["Join", "FetchBlob", "NextAssignment", "TrainBatch", "SubmitUpdate", "Leave"]
    transport = Path(sys.modules[Transport.__module__].__file__ or "").read_text()
    for rpc in rpcs:
        assert rpc in vars(Servicer)
        assert f"_stub.{rpc}" in transport


def test_both_sides_serve_their_metrics_over_http(cluster: Cluster) -> None:
    server = cluster.server(clients=1, rounds=400, local_steps=3)
    port = free_port()
    client = cluster.client(0, 1, metrics_port=port)
    eventually(lambda: cluster.rounds_completed() >= 2, 60, "two rounds")
    on_server = urllib.request.urlopen(f"http://{cluster.metrics_address()}/metrics", timeout=10).read().decode()
    on_client = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    for process in (client, server):
        process.process.terminate()
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in on_server.splitlines() if line and not line.startswith("#")
    }
    assert values["heron_server_rounds_completed_total"] >= 2
    assert values["heron_server_connected_clients"] == 1
    assert values['heron_server_bytes_total{direction="up",kind="activations"}'] >= 2 * 3 * 64 * 32 * 4
    assert values['heron_server_uploads_total{outcome="trained"}'] >= 6
    assert values["heron_server_resident_memory_bytes"] > 1e7
    assert values["heron_server_evaluation_accuracy"] > 0
    assert "heron_client_rounds_completed_total" in on_client
    assert "heron_client_local_step_seconds_count" in on_client
    assert 'name="client-0"' not in on_server + on_client
    assert "client-0" not in on_server + on_client


def test_the_prometheus_file_scrapes_the_default_port() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in document["scrape_configs"]}
    assert jobs["heron-server"] == ["127.0.0.1:9464"]
    assert jobs["heron-client"]


def test_the_readme_names_only_commands_and_options_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in ("heron-server", "heron-client"):
        module = command.replace("-", "_")
        known = set(
            re.findall(
                r"--[a-z][a-z-]+",
                subprocess.run([sys.executable, "-m", module, "--help-all"], capture_output=True, text=True, check=True).stdout,
            )
        )
        for line in re.findall(rf"^{command} .*(?:\\\n.*)*", readme, re.MULTILINE):
            assert set(re.findall(r"--[a-z][a-z-]+", line)) <= known, line
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z0-9-]+)", readme)) <= targets


def test_log_lines_of_a_run_are_structured(cluster: Cluster) -> None:
    server = cluster.server(clients=1, rounds=1, local_steps=2)
    client = cluster.client(0, 1)
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
    pattern = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING) heron_(server|client): ")
    for process in (server, client):
        lines = log_of(process).splitlines()
        assert lines
        assert [line for line in lines if not pattern.match(line)] == []
