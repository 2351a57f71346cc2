"""A stranger does all it can, from a process of its own: an honest client's asks go on, its run ends equal, and the log says what happened in few lines."""

from __future__ import annotations

import re
import resource
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch

from heron_client.network.channel import SealingChannel
from heron_common.protocol.grpc_options import channel_options
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingStub
from tests.harness.cluster import NARROWEST, Cluster, log_of, wait_for_exit
from tests.harness.forks import Forks
from tests.harness.polling import eventually

ROUNDS = 2
DESCRIPTORS = 512


def serve(cluster: Cluster) -> int:
    """Start a small server; return its process id."""
    options = {"clients": 1, "rounds": ROUNDS, "local_steps": 2, "model_options": NARROWEST, "eval_data": None, "grace_seconds": 1}
    return cluster.server(max_clients=2, **options).process.pid


class Probe:
    """An honest connection of somebody who only checks, which asks for work."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[*channel_options(), ("grpc.use_local_subchannel_pool", 1)])
        self._stub = SplitTrainingStub(SealingChannel(self._channel))
        self.visit = self._stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION, only_checks=True), timeout=10)

    def asks(self, number: int) -> list[float]:
        """Ask so many times; return how long each took, infinity for a failure."""
        return [self._ask() for _ in range(number)]

    def _ask(self) -> float:
        began = time.monotonic()
        try:
            self._stub.NextAssignment(pb.NextAssignmentRequest(session=self.visit.session), timeout=10)
        except grpc.RpcError:
            return float("inf")
        return time.monotonic() - began

    def program(self) -> int:
        """Fetch a program as a check does; return how many bytes came."""
        request = pb.FetchBlobRequest(session=self.visit.session, sha256=self.visit.programs[0].blob.sha256)
        return sum(len(part.data) for part in self._stub.FetchBlob(request, timeout=10))

    def close(self) -> None:
        self._channel.close()


def counted(cluster: Cluster) -> set[str]:
    """Return the reasons for which the server's metrics count refusals."""
    metrics = urllib.request.urlopen(f"http://{cluster.metrics_address()}/metrics", timeout=10).read().decode()
    return set(re.findall(r'^heron_server_rejections_total{reason="(\w+)"}', metrics, re.MULTILINE))


def attacked(cluster: Cluster, asks: int) -> tuple[dict[str, torch.Tensor], list[float], str]:
    """Run one client under attack; return the weights, how long a probe's asks took and the server's log."""
    pid = serve(cluster)
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    probe = Probe(cluster.address)
    stranger = cluster.start_command("stranger", [sys.executable, "-m", "tests.system.hostile.stranger", cluster.address])
    eventually(lambda: "attacking" in log_of(stranger), what="the attack")
    server_log = Path(next(cluster.directory.glob("logs/*server-1*")))
    eventually(lambda: "strangers take all slots" in server_log.read_text(), what="the server's word on it")
    took = probe.asks(asks)
    assert probe.program() == probe.visit.programs[0].blob.size_bytes
    eventually(lambda: counted(cluster) >= {"too_many_calls", "malformed", "too_many_clients"}, what="refusals of every kind")
    assert wait_for_exit(cluster.client(0, 1)) == 0
    assert stranger.exit_code is None
    probe.close()
    eventually(lambda: cluster.rounds_completed() == ROUNDS, what="the end of the run")
    return cluster.final_tensors(), took, server_log.read_text()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    started = Forks()
    yield started
    started.close()


def undisturbed(directory: Path, forks: Forks) -> dict[str, torch.Tensor]:
    with Cluster(directory, forks) as cluster:
        serve(cluster)
        assert wait_for_exit(cluster.client(0, 1)) == 0
        eventually(lambda: cluster.rounds_completed() == ROUNDS, what="the end of the run")
        return cluster.final_tensors()


def check(directory: Path, forks: Forks, asks: int) -> None:
    with Cluster(directory / "attacked", forks) as cluster:
        weights, took, log = attacked(cluster, asks)
    failed = sum(seconds == float("inf") for seconds in took)
    assert failed <= asks // 20, f"{failed} of {asks} asks went unanswered, the others took {sorted(took)[-3:]}"
    expected = undisturbed(directory / "quiet", forks)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert "Traceback" not in log
    assert log.count("refused messages that no client of ours sends") == 1
    assert log.count("nearly all files that this process may have open are") == 1


def test_a_run_under_attack_ends_as_one_without(tmp_path: Path, forks: Forks) -> None:
    check(tmp_path, forks, asks=30)


@pytest.mark.slow
def test_a_long_attack_changes_nothing_either(tmp_path: Path, forks: Forks) -> None:
    check(tmp_path, forks, asks=1000)
