"""A service manager starts the same command again and again: the first start begins the run, each later one goes on with it."""

from __future__ import annotations

import signal

import pytest

from heron_common.exit_codes import ExitCode
from tests.harness.cluster import Cluster, log_of, wait_for_exit
from tests.harness.polling import eventually
from tests.harness.simulated import TINY_FRONT


@pytest.mark.slow
def test_one_command_begins_goes_on_and_finds_a_run_done(cluster: Cluster) -> None:
    same = {"preset": "frozen", "model_options": TINY_FRONT, "local_steps": 1, "eval_data": None, "clients": 1, "resume_if_begun": True}
    first = cluster.server(rounds=100_000, **same)
    cluster.client(0, 1)
    eventually(lambda: cluster.rounds_completed() > 1, 90, "rounds")
    first.process.send_signal(signal.SIGTERM)
    assert wait_for_exit(first) == ExitCode.OK
    run_id, completed = cluster.summary()["run_id"], cluster.rounds_completed()
    # What is left of the run is nothing: the number of rounds may change on the way.
    second = cluster.server(rounds=completed, **same)
    assert wait_for_exit(second) == ExitCode.OK, log_of(second)
    assert (cluster.summary()["run_id"], cluster.rounds_completed()) == (run_id, completed)
