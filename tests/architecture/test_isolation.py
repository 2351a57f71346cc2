"""What `make test-unit` runs starts no process and opens no socket: whatever does fails, however it does it and whoever catches the error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness.isolation import Isolation

pytestmark = pytest.mark.process

SAMPLE = """
import contextlib, multiprocessing, os, socket, subprocess, sys
import grpc, pytest

def test_computes(): assert 1 + 1 == 2
def test_runs_a_command(): subprocess.run([sys.executable, "-c", ""])
def test_catches_the_error():
    with contextlib.suppress(Exception):
        subprocess.run([sys.executable, "-c", ""])
def test_forks():
    if os.fork() == 0:
        os._exit(0)
def test_spawns(): multiprocessing.get_context("spawn").Process(target=print).start()
def test_connects(): socket.create_connection(("127.0.0.1", 9))
def test_listens():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
def test_calls(): grpc.insecure_channel("127.0.0.1:9")
def test_serves(): grpc.server(None)

@pytest.fixture
def running(): subprocess.run([sys.executable, "-c", ""])
def test_has_a_fixture_that_runs(running): pass

@pytest.mark.process
def test_is_marked(): raise AssertionError
@pytest.fixture
def cluster(): raise AssertionError
def test_has_a_cluster(cluster): pass
"""


class Outcomes:
    """Collects what became of each test: the worst of its phases."""

    def __init__(self) -> None:
        self.failed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("::")[2]
        self.failed[name] = self.failed.get(name, False) or report.failed


def test_whatever_starts_a_process_or_opens_a_socket_fails_and_what_is_marked_is_left_out(tmp_path: Path) -> None:
    for folder in ("common", "system"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test_isolation_sample.py").write_text(SAMPLE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = process\n")
    outcomes = Outcomes()
    words = [str(tmp_path), "-c", str(tmp_path / "pytest.ini"), "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--import-mode=importlib"]
    pytest.main(words, plugins=[Isolation(tmp_path), outcomes])
    assert outcomes.failed.pop("test_computes") is False
    assert len(outcomes.failed) == 9 and all(outcomes.failed.values()), outcomes.failed
