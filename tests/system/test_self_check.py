"""`heron-client --self-check` against a real server: go, no-go for memory, and no-go where nobody answers; never a part in the run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from heron_client.device.device_findings import Finding
from heron_client.device.self_check import _samples_finding
from heron_common.data.sources import open_source
from heron_common.data.specification import parse_specification
from heron_common.exit_codes import ExitCode
from tests.harness.cluster import NARROWEST, Cluster, free_port, log_of, wait_for_exit
from tests.harness.polling import eventually


def test_a_device_is_checked_without_a_part_in_the_run_and_its_estimates_hold(cluster: Cluster) -> None:
    cluster.server(clients=1, rounds=2, local_steps=2, warmup_rounds=0, model_options=NARROWEST)
    checked = cluster.client(0, 1, self_check=True, memory_limit="150MB", name="client-0")
    assert wait_for_exit(checked) == ExitCode.OK, log_of(checked)
    page = log_of(checked)
    topics = [line.split()[0] for line in page.splitlines() if re.match(r"[a-z]+ {2,}\S", line)]
    expected = ["processor", "memory", "disk", "data", "server", "certificate", "clock", "program", "round", "fit", "samples", "verdict"]
    assert topics == expected, page
    assert "as on the server to within" in page and "1437 samples" in page and "2 steps of 64 samples" in page
    small = cluster.client(0, 1, self_check=True, memory_limit="20MB", name="small", data=None, state_dir=cluster.directory / "small")
    assert wait_for_exit(small) == ExitCode.NO_GO
    assert "fit           NO:" in log_of(small) and "verdict       no-go" in log_of(small) and "Traceback" not in log_of(small)
    # The run waits for one client: a check that took part would have opened, and abandoned, its round. What was fetched serves the run.
    client = cluster.client(0, 1)
    assert wait_for_exit(client) == ExitCode.OK
    eventually(lambda: cluster.rounds_completed() == 2, 60, "the rounds")
    clients = cluster.summary()["clients"]
    assert list(clients) == ["client-0"] and "program" not in clients["client-0"]["bytes_down"]
    up = {kind: size for kind, size in clients["client-0"]["bytes_up"].items() if kind in ("activations", "labels", "update")}
    assert f"{sum(up.values()) / 2 / 1000:.3g} kB up" in page


def test_a_damaged_picture_is_found(tmp_path: Path) -> None:
    for index in range(4):
        path = tmp_path / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 60 * index, np.uint8)).save(path)
    membership: Any = SimpleNamespace(data_specification=parse_specification("1x8x8:a,b:0:128"))
    visit: Any = None

    def finding() -> Finding:
        return _samples_finding(open_source(f"image-folder:{tmp_path}"), membership, visit)

    assert finding().go and "all 4 can be read" in finding().sentence
    whole = (tmp_path / "a" / "2.png").read_bytes()
    (tmp_path / "a" / "2.png").write_bytes(whole[: len(whole) // 2])
    assert not finding().go and "1 do not fit" in finding().sentence and "2.png" in finding().sentence


def test_nobody_answers_is_no_go(cluster: Cluster) -> None:
    client = cluster.client(0, 1, f"127.0.0.1:{free_port()}", self_check=True)
    assert wait_for_exit(client, 60) == ExitCode.NO_GO
    assert "server        NO: 127.0.0.1" in log_of(client) and "Traceback" not in log_of(client)
