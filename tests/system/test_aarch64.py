"""A client of another architecture, emulated, takes part in a run of this one, and its weights are the same bits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from heron_cli.processes import ProcessGroup
from tests.harness.aarch64 import FLOOR, EmulatedDevice, emulated_device
from tests.harness.cluster import Cluster, wait_for_exit
from tests.system.test_audit import audit

pytestmark = pytest.mark.slow

MOST_SECONDS = 900


@pytest.fixture(scope="module")
def device() -> EmulatedDevice:
    return emulated_device()


def digits_file(directory: Path) -> Path:
    """Write the digits for a device without scikit-learn."""
    digits = load_digits()
    path = directory / "digits.npz"
    np.savez(path, x=digits.images[:400, None].astype(np.float32), y=digits.target[:400])
    return path


def test_wheels_for_the_device_need_no_newer_c_library_than_is_promised(device: EmulatedDevice) -> None:
    compiled = [path.name for path in (device.folder / "wheels").glob("*aarch64*.whl")]
    assert {name.split("-")[0] for name in compiled} >= {"numpy", "onnxruntime", "grpcio", "protobuf"}
    newest = int(FLOOR.split("_")[2])
    versions = [
        int(part.split("_")[2])
        for name in compiled
        for part in name.removesuffix(".whl").split("-")[-1].split(".")
        if part.startswith("manylinux_2")
    ]
    assert versions and max(versions) <= newest


def test_a_run_of_an_emulated_device_replays_to_its_very_bits(cluster: Cluster, device: EmulatedDevice) -> None:
    server = cluster.server(rounds=3, local_steps=3, batch_size=32, clients=1, update_encoding="log", liveness_seconds=300)
    data = digits_file(cluster.directory)
    options = ["-m", "heron_client", "--server", cluster.address, "--data", f"npz:{data}", "--name", "board"]
    with ProcessGroup(cluster.directory / "device") as group:
        environment = device.environment
        checked = subprocess.run(
            [*device.command, *options, "--self-check"],
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            env={**os.environ, **environment},
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "aarch64" in checked.stdout
        client = group.start_command("client", [*device.command, *options, "--state-dir", str(cluster.directory / "state")], environment)
        assert client.wait(MOST_SECONDS) == 0, client.log.read_text()
    assert wait_for_exit(server) == 0
    assert cluster.summary()["clients"]["board"]["log_mismatches"] == 0
    proved = audit(cluster.run_dir)
    assert proved.returncode == 0 and "2 logs replayed" in proved.stdout, proved.stdout + proved.stderr
