"""`heron audit`: a run whose clients submit logs is proved from its first checkpoint on, and a changed file is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, wait_for_exit


def audit(run_dir: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "heron_cli", "audit", "--run-dir", str(run_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def logged(cluster: Cluster) -> Path:
    server = cluster.server(rounds=5, local_steps=3, batch_size=32, update_encoding="log")
    clients = cluster.clients(2)
    assert [wait_for_exit(process) for process in (*clients, server)] == [0, 0, 0]
    return cluster.run_dir


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def test_a_run_of_logs_is_proved_and_a_changed_log_is_named(logged: Path) -> None:
    proved = audit(logged)
    assert proved.returncode == 0, proved.stderr
    # The first round warms the server up; in the other four both clients' logs are replayed.
    assert proved.stdout.count("2 logs replayed, average proved") == 4
    assert "after round 5 is proved bit for bit: 8 logs replayed" in proved.stdout
    flip(logged / "audit" / "round-000003.safetensors")
    refused = audit(logged)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    assert "round 4" in refused.stderr and "do not belong together" in refused.stderr


def test_what_cannot_be_audited_says_why(cluster: Cluster, tmp_path: Path) -> None:
    nothing = audit(tmp_path / "nowhere")
    assert nothing.returncode != 0 and "holds no run" in nothing.stderr
    server = cluster.server(clients=1, rounds=2, local_steps=2, update_encoding="dense")
    client = cluster.client(0, 1)
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
    dense = audit(cluster.run_dir)
    assert dense.returncode != 0 and "--update-encoding log" in dense.stderr
