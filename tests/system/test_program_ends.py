"""A real client whose program takes minutes: a signal ends it at once, and without one the client gives the program up with code 6."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from heron_cli.processes import LoggedProcess
from heron_common.exit_codes import ExitCode
from tests.harness.cluster import Cluster, log_of, wait_for_exit, words_of
from tests.harness.polling import eventually

SCRIPT = """
import functools, sys
sys.path.insert(0, sys.argv.pop(1))
from heron_client import session
from heron_client.training import runtime
from heron_client.training.program_runs import ProgramRuns
from tests.client.training.test_program_runs import Loaded, long_program

endless = Loaded(long_program())
session.ProgramRuns = functools.partial(ProgramRuns, longest_seconds=float(sys.argv[1]))

def run_again(self):
    print("a program runs", file=sys.stderr, flush=True)
    self._runs.run(endless.session, endless.binding, f"the {self.kind.value} program")

runtime.Program.run_again = run_again

from heron_client.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_client_leaves_a_program_that_does_not_end(cluster: Cluster) -> None:
    server = cluster.server(clients=1, rounds=1, local_steps=2)
    given = {"server": cluster.address, "data": "digits:train", "name": "a", "state_dir": cluster.directory / "state"}
    (cluster.directory / "client.py").write_text(SCRIPT)

    def client(name: str, longest_seconds: float) -> LoggedProcess:
        command = [
            sys.executable,
            str(cluster.directory / "client.py"),
            str(Path(__file__).parents[2]),
            str(longest_seconds),
            *words_of(given),
        ]
        return cluster.start_command(name, command)

    asked = client("asked", 600)
    eventually(lambda: "a program runs" in log_of(asked), 60, "a step")
    asked.process.terminate()
    assert wait_for_exit(asked, 15) == ExitCode.OK
    assert "Traceback" not in log_of(asked)
    tired = client("tired", 1)
    assert wait_for_exit(tired, 60) == ExitCode.PROGRAM
    assert "program was ended after 1 s for a single micro-batch" in log_of(tired)
    server.process.terminate()
    assert wait_for_exit(server) == ExitCode.OK
