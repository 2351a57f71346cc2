"""The device's side: no torch, transformers or pydantic, and a hard ceiling on memory."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from heron_common.data.sources import open_source
from heron_common.process.process_memory import resident_memory
from heron_common.version import VERSION
from tests.harness.cluster import Cluster, log_of, wait_for_exit
from tests.harness.polling import eventually
from tests.harness.sources import ROOT, installable

MEMORY_CEILING_BYTES = 100_000_000
"""The promise to devices: VmHWM of a whole client process on the demo's task."""

_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "pydantic", "heron_server", "onnx", "scipy"}:
            raise ImportError(f"{name} is blocked in this test")

sys.meta_path.insert(0, Blocked())
from heron_client.cli import main
code = main(sys.argv[1:])
assert "sklearn" not in sys.modules
sys.exit(code)
"""


def _digits_file(directory: Path) -> Path:
    source = open_source("digits:train")
    path = directory / "digits.npz"
    np.savez(path, x=source.inputs.read(source.rows), y=source.labels.read(source.rows))
    return path


@pytest.mark.invariant(20)
def test_a_client_trains_with_torch_transformers_and_pydantic_blocked(cluster: Cluster) -> None:
    server = cluster.server(clients=1, rounds=2, local_steps=3)
    script = cluster.directory / "blocked.py"
    script.write_text(_BLOCKED)
    arguments = ["--server", cluster.address, "--data", "digits:train", "--name", "lean", "--state-dir", str(cluster.directory / "state")]
    client = cluster.start_command("blocked", [sys.executable, str(script), *arguments])
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
    assert cluster.summary()["clients"]["lean"]["rounds_completed"] == 2


@pytest.mark.slow
def test_a_client_installed_with_its_plain_dependencies_alone_trains(cluster: Cluster, tmp_path: Path) -> None:
    environment = tmp_path / "lean"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        str(ROOT / "constraints.txt"),
        str(installable()),
    ]
    subprocess.run(install, check=True, timeout=400, cwd=tmp_path)
    present = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    for command, code in (
        ("heron-client --version", 0),
        ("heron --version", 0),
        ("heron-server --version", 0),
        ("heron-server", 2),
        ("heron simulate", 2),
    ):
        program, *words = command.split()
        ended = subprocess.run([str(environment / "bin" / program), *words], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == code, command
        assert ended.stdout == f"{program} {VERSION}\n" if code == 0 else "pip install 'heron-sfl[server]'" in ended.stderr, ended
        assert ended.stderr.count("\n") == (code != 0), ended.stderr
    names = {line.partition("==")[0].lower() for line in present.splitlines()}
    assert not names & {"torch", "transformers", "pydantic", "onnx", "scikit-learn", "safetensors", "grpcio-health-checking"}
    server = cluster.server(clients=1, rounds=2, local_steps=3)
    arguments = [
        "--server",
        cluster.address,
        "--data",
        f"npz:{_digits_file(tmp_path)}",
        "--name",
        "lean",
        "--state-dir",
        str(tmp_path / "state"),
    ]
    client = cluster.start_command("lean", [str(environment / "bin" / "heron-client"), *arguments])
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
    assert cluster.summary()["clients"]["lean"]["rounds_completed"] == 2


@pytest.mark.invariant(20)
@pytest.mark.parametrize("batch_size", [64, 1024])
def test_a_client_stays_under_its_memory_ceiling_whatever_the_batch(cluster: Cluster, batch_size: int) -> None:
    server = cluster.server(clients=1, rounds=2, local_steps=3, batch_size=batch_size)
    client = cluster.client(0, 1)
    peak = 0

    def sample() -> bool:
        nonlocal peak
        peak = max(peak, resident_memory(client.process.pid).peak_bytes)
        return client.exit_code is not None

    eventually(sample, 120, "the end of the client")
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
    reported = cluster.summary()["clients"]["client-0"]["peak_memory_bytes"]
    # What the client reports is what the kernel says: our own last sample cannot be larger than its final figure by more than its last moments.
    assert 0 < peak <= MEMORY_CEILING_BYTES
    assert 0 < reported <= MEMORY_CEILING_BYTES


def test_nothing_of_the_runtime_reports_to_its_maker(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In CI the runtime keeps quiet by itself, which would hide a client that does not ask it to.
    for name in ("CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = cluster.server(clients=1, rounds=1, local_steps=1)
    client = cluster.client(0, 1)
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"heron"}


def test_memory_does_not_grow_from_round_to_round(cluster: Cluster) -> None:
    server = cluster.server(clients=1, rounds=40, local_steps=2, batch_size=32)
    client = cluster.client(0, 1)
    assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
    peaks = [float(text) for text in re.findall(r"peak_memory_mb=([0-9.]+)", log_of(client))]
    assert len(peaks) == 40
    assert peaks[-1] - peaks[4] < 1.5
