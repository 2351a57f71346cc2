"""Runs whose processes are killed at named points and started again, and what such a run leaves to compare."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heron_cli.processes import LoggedProcess, ProcessError
from heron_common.process.crash_points import CRASH_VARIABLE
from heron_server.storage.ledger import Balance, Ledger
from tests.harness.cluster import Cluster, free_port, log_of, wait_for_exit
from tests.harness.forks import Forks
from tests.harness.polling import eventually

PATIENT = {"server_schedule": "lockstep", "seed": 5, "min_updates": 2, "liveness_seconds": 300, "batch_size": 16}
"""Nobody is dropped because a machine is busy."""

GRACE_SECONDS = 120.0
"""A finished server waits so long for the goodbye of a client that has to be started again."""

DEADLINE_SECONDS = 120.0


Between = Callable[[Cluster], None]
"""What happens to the files of a run while its server is down."""


@dataclass(frozen=True)
class Outcome:
    """What a run ended with; `rounds` are the summary's, without how long each took and what the wire carried, which retries add to."""

    tensors: dict[str, torch.Tensor]
    rounds: list[dict[str, Any]]
    balance: Balance
    spooled: list[str]
    log: str

    def differing(self, other: Outcome) -> list[str]:
        """Return the names of tensors and of figures of rounds that are not equal bit for bit."""
        names = sorted({*self.tensors, *other.tensors})
        unlike = [n for n in names if n not in self.tensors or n not in other.tensors or not torch.equal(self.tensors[n], other.tensors[n])]
        pairs = zip(self.rounds, other.rounds, strict=True)
        return unlike + [f"{name} of round {i}" for i, (one, two) in enumerate(pairs) for name in one if one[name] != two[name]]


class Trial:
    """One run of two clients over a fixed port."""

    def __init__(self, directory: Path, forks: Forks, **options: Any) -> None:
        self._directory = directory
        self._forks = forks
        self._port = free_port()
        fixed = {"clients": 2, "listen": f"127.0.0.1:{self._port}", "grace_seconds": GRACE_SECONDS}
        self._options = {**fixed, **PATIENT, **options}

    def undisturbed(self) -> Outcome:
        """Return how the run ends if nothing happens."""
        return self.with_server_kills([])

    def with_server_kills(
        self, points: Sequence[str], between: Between | None = None, last_grace_seconds: float = GRACE_SECONDS
    ) -> Outcome:
        """Return how it ends if its server is killed at one point after the other; clients are never started again.

        `last_grace_seconds` is how long the last server waits for goodbyes that the one before it may have heard.
        """
        with Cluster(self._directory, self._forks) as cluster:
            clients = [self._client(cluster, index) for index in range(2)]
            log = ""
            for number, point in enumerate(points):
                log += self._serve_until_killed(cluster, point, resume=number > 0)
                if between is not None:
                    between(cluster)
            server = cluster.server({}, resume=bool(points), **{**self._options, "grace_seconds": last_grace_seconds})
            assert [wait_for_exit(p, DEADLINE_SECONDS) for p in (*clients, server)] == [0, 0, 0]
            return self._outcome(cluster, log + log_of(server))

    def with_client_kills(self, points: Sequence[str]) -> Outcome:
        """Return how it ends if one of its clients is killed at one point after the other, and started again with what it kept."""
        with Cluster(self._directory, self._forks) as cluster:
            server = cluster.server({}, **self._options)
            other = self._client(cluster, 1)
            for point in points:
                _await_kill(self._client(cluster, 0, point), point)
            last = self._client(cluster, 0)
            assert [wait_for_exit(p, DEADLINE_SECONDS) for p in (last, other, server)] == [0, 0, 0]
            return self._outcome(cluster, log_of(server))

    def with_a_goodbye(self, point: str = "") -> Outcome:
        """Return how it ends if a client leaves inside the first round and comes back, its server killed at a point of that or not."""
        with Cluster(self._directory, self._forks) as cluster:
            leaving, other = self._client(cluster, 0), self._client(cluster, 1)
            server = cluster.server(_armed(point), **self._options)
            eventually(lambda: "round opened" in log_of(server), DEADLINE_SECONDS, "an open round")
            eventually(lambda: "joined" in log_of(leaving), DEADLINE_SECONDS, "the client to know that it is in")
            leaving.process.terminate()
            assert wait_for_exit(leaving, DEADLINE_SECONDS) == 0
            log = ""
            if point:
                _await_kill(server, point)
                log = log_of(server)
                server = cluster.server({}, resume=True, **self._options)
            back = self._client(cluster, 0)
            assert [wait_for_exit(p, DEADLINE_SECONDS) for p in (back, other, server)] == [0, 0, 0]
            return self._outcome(cluster, log + log_of(server))

    def _client(self, cluster: Cluster, index: int, point: str = "") -> LoggedProcess:
        return cluster.client(index, 2, f"127.0.0.1:{self._port}", _armed(point))

    def _serve_until_killed(self, cluster: Cluster, point: str, resume: bool) -> str:
        try:
            server = cluster.server(_armed(point), resume=resume, **self._options)
        except ProcessError as exc:
            # Killed before it listened.
            assert exc.process is not None
            server = exc.process
        _await_kill(server, point)
        return log_of(server)

    def _outcome(self, cluster: Cluster, log: str) -> Outcome:
        run_id = json.loads((cluster.run_dir / "run.json").read_text())["run_id"]
        ledger = Ledger(cluster.run_dir / "ledger.sqlite", run_id, begins=False)
        try:
            balance = ledger.balance()
        finally:
            ledger.close()
        rounds = [
            {name: value for name, value in row.items() if not name.endswith(("seconds", "so_far"))} for row in cluster.summary()["rounds"]
        ]
        spooled = sorted(path.name for path in (cluster.run_dir / "spool").iterdir())
        return Outcome(cluster.final_tensors(), rounds, balance, spooled, log)


def assert_nothing_was_lost(outcome: Outcome, undisturbed: Outcome) -> None:
    """Assert that a run that was killed ended as the one that was not: bit-equal, every upload trained or scored once, nothing left behind."""
    assert outcome.differing(undisturbed) == []
    assert outcome.balance == undisturbed.balance
    assert outcome.balance.waiting == outcome.balance.rejected == 0
    assert outcome.spooled == []


def _armed(point: str) -> dict[str, str]:
    return {CRASH_VARIABLE: point} if point else {}


def _await_kill(process: LoggedProcess, point: str) -> None:
    eventually(lambda: process.exit_code is not None, DEADLINE_SECONDS, f"the kill of {process.name} at {point}")
    assert process.exit_code == -signal.SIGKILL, f"{process.name} never came to {point}:\n{log_of(process)[-3000:]}"
