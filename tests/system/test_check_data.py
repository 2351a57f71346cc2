"""`heron-client --check-data` against a real server, and a client that trains on a CSV file."""

from __future__ import annotations

import numpy as np

from heron_common.data import open_source
from heron_common.exit_codes import ExitCode
from tests.harness.cluster import Cluster, free_port, log_of, wait_for_exit
from tests.harness.polling import eventually


def write_digits(cluster: Cluster, name: str, wrong: str = "") -> str:
    source = open_source("digits:train")
    rows = np.arange(200)
    x, y = source.inputs.read(rows).reshape(200, 64).astype(int), source.labels.read(rows)
    header = ",".join(["digit", *(f"p{place}" for place in range(64))])
    lines = [f"{label}," + ",".join(map(str, pixels)) for label, pixels in zip(y, x, strict=True)]
    path = cluster.directory / name
    path.write_text("\n".join([header, *lines, *([wrong] if wrong else [])]) + "\n")
    return f"csv:{path}:*:digit"


def test_data_are_checked_without_a_part_in_the_run_and_then_trained_on(cluster: Cluster) -> None:
    cluster.server(clients=1, rounds=1, local_steps=2)
    good, bad = write_digits(cluster, "good.csv"), write_digits(cluster, "bad.csv", "12," + ",".join(["0"] * 63) + ",dark")
    fits = cluster.client(0, 2, data=good, check_data=True, name="fits")
    differs = cluster.client(0, 1, data=bad, check_data=True, name="differs")
    assert [wait_for_exit(fits), wait_for_exit(differs)] == [ExitCode.OK, ExitCode.DATA]
    assert "samples       100" in log_of(fits) and "[1, 8, 8] float32" in log_of(fits) and "fits the run" in log_of(fits)
    assert "expects labels from 0 to 9" in log_of(differs) and "has 12 (line 202" in log_of(differs)
    assert "line 202 of" in log_of(differs) and "should have a number in p63, but has 'dark'" in log_of(differs)
    assert "fits the run" not in log_of(differs) and "Traceback" not in log_of(differs)
    # The run waits for one client: a check that took part would have opened, and abandoned, its round.
    client = cluster.client(0, 1, data=good)
    assert wait_for_exit(client) == ExitCode.OK
    eventually(lambda: cluster.rounds_completed() == 1, 60, "the round")
    assert list(cluster.summary()["clients"]) == ["client-0"]


def test_a_check_does_not_wait_for_a_server(cluster: Cluster) -> None:
    client = cluster.client(0, 1, f"127.0.0.1:{free_port()}", check_data=True)
    assert wait_for_exit(client, 30) == ExitCode.UNREACHABLE
