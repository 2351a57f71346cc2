"""A signal while a server builds and compiles ends it soon, with code 0, and leaves a directory in which the run can begin or go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heron_common.exit_codes import ExitCode
from heron_server.app import STARTING_GRACE_SECONDS
from tests.harness.cluster import words_of
from tests.harness.polling import eventually

MODEL = """
import os, time
from torch import nn

def slow():
    print("building", flush=True)
    time.sleep(float(os.environ["SECONDS"]))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 10))
"""

OPTIONS = {"listen": "127.0.0.1:0", "metrics_port": 0, "data_spec": "digits", "clients": 1, "rounds": 1, "preset": "frozen"}


def start(directory: Path, seconds: float, **options: object) -> subprocess.Popen[str]:
    (directory / "slow_zoo.py").write_text(MODEL)
    words = words_of(
        OPTIONS
        | {"run_dir": directory / "run", "model": "python:slow_zoo:slow", "cut": "1", "program_cache": directory / "programs"}
        | options
    )
    environment = os.environ | {"SECONDS": str(seconds), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "heron_server", *words]
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stopped(process: subprocess.Popen[str], at: str) -> str:
    """Send SIGTERM once a line holds `at`; return what was printed once it has ended by itself."""
    assert process.stdout is not None
    lines = []
    with process:
        for line in process.stdout:
            lines.append(line)
            if at in line:
                break
        process.send_signal(signal.SIGTERM)
        try:
            eventually(lambda: process.poll() is not None, STARTING_GRACE_SECONDS + 30, "the end of the server")
        finally:
            process.kill()
        return "".join(lines) + process.stdout.read()


def test_a_server_ends_though_its_model_takes_an_hour_to_build(tmp_path: Path) -> None:
    process = start(tmp_path, 3600)
    printed = stopped(process, "building")
    assert process.returncode == ExitCode.OK and "does not end" in printed and "Traceback" not in printed
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_a_server_that_is_stopped_before_it_compiles_leaves_a_directory_to_begin_in(tmp_path: Path) -> None:
    process = start(tmp_path, 1)
    assert stopped(process, "building").splitlines()[-1] and process.returncode == ExitCode.OK
    assert not list((tmp_path / "programs").glob("*")) and not (tmp_path / "run" / "run.json").exists()
    again = start(tmp_path, 0)
    assert "listening" in stopped(again, "listening") and again.returncode == ExitCode.OK
    resumed = start(tmp_path, 1, resume=True)
    assert "listening" not in stopped(resumed, "building") and resumed.returncode == ExitCode.OK
    assert "listening" in stopped(start(tmp_path, 0, resume=True), "listening")
