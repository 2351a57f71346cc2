"""Mutual TLS between real processes: devices that belong take part, all others are refused, learn nothing, and are told what to do."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from heron_cli.processes import LoggedProcess
from heron_common.exit_codes import ExitCode
from heron_server.certificates.authority import Authority
from tests.harness.certificates import DAY, at, issued, mixed
from tests.harness.cluster import Cluster, log_of, wait_for_exit
from tests.harness.polling import eventually
from tests.harness.simulated import TINY_FRONT

MANY_ROUNDS = 100_000


@dataclass(frozen=True)
class SecuredRun:
    """A run under way whose two devices showed their certificates, and a device's folder of every kind that is refused."""

    cluster: Cluster
    authority: Authority
    server: LoggedProcess
    members: list[LoggedProcess]

    @property
    def secrets(self) -> tuple[str, ...]:
        """What nobody but a member may learn: the run, its programs, its other clients."""
        facts = self.cluster.summary()
        programs = [path.stem for path in self.cluster.directory.glob("state/0/programs/*")]
        assert programs
        return (facts["run_id"], *programs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredRun]:
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority.create(directory / "authority", ["127.0.0.1"])
    with Cluster(directory) as cluster:
        # A front that rests is compiled soonest.
        few = {"preset": "frozen", "model_options": TINY_FRONT, "local_steps": 1, "eval_data": None}
        server = cluster.server(rounds=MANY_ROUNDS, min_updates=1, liveness_seconds=3, tls_dir=authority.server_directory, **few)
        members = [device(cluster, index, issued(authority, f"member-{index}")) for index in range(2)]
        eventually(lambda: cluster.rounds_completed() > 0, 60, "a round of both members")
        yield SecuredRun(cluster, authority, server, members)


def device(cluster: Cluster, index: int, folder: Path | None, **options: Any) -> LoggedProcess:
    """Start a client that goes by its certificate."""
    return cluster.client(index, 2, **{"name": None, "shard": f"{index % 2}/2", "tls_dir": folder, **options})


def test_everybody_who_does_not_belong_is_refused_and_told_what_to_do(run: SecuredRun, tmp_path: Path) -> None:
    authority, cluster = run.authority, run.cluster
    other = issued(Authority.create(tmp_path / "other", ["127.0.0.1"]), "member-0")
    at(authority, -400 * DAY).issue("expired")
    issued(authority, "revoked")
    authority.revoke("revoked")
    patience = {"give_up_after_seconds": 2}
    refusals = {
        "of another authority": (device(cluster, 10, other, **patience), ExitCode.UNREACHABLE, "is not from the CA in"),
        "with another's CA": (
            device(cluster, 11, mixed(tmp_path / "mixed", other, ca=authority.directory / "ca.pem")),
            ExitCode.CONFIGURATION,
            "was not issued by the CA in",
        ),
        "expired": (
            device(cluster, 12, authority.device_directory("expired")),
            ExitCode.CONFIGURATION,
            "ask for a new one: `heron certs issue",
        ),
        "revoked": (
            device(cluster, 13, authority.device_directory("revoked")),
            ExitCode.REFUSED,
            "ask for a new one (`heron certs issue`)",
        ),
        "of another device": (
            device(cluster, 14, issued(authority, "member-2"), name="member-1"),
            ExitCode.CONFIGURATION,
            "is for 'member-2', and the server goes by the certificate: leave --name out",
        ),
        "none": (
            device(cluster, 15, None, **patience),
            ExitCode.UNREACHABLE,
            "expects TLS and this client has no certificate: give --tls-dir",
        ),
    }
    for what, (process, code, sentence) in refusals.items():
        assert wait_for_exit(process, 60) == code, what
        said = log_of(process)
        assert sentence in said.splitlines()[-1], what
        assert "Traceback" not in said
        for secret in run.secrets:
            assert secret not in said, what
    for index in range(10, 16):
        assert not list(cluster.directory.glob(f"state/{index}/programs/*"))
    assert set(cluster.summary()["clients"]) == {"member-0", "member-1"}
    refused = [line for line in log_of(run.server).splitlines() if "refused a certificate" in line]
    assert len(refused) == 1 and "client=revoked" in refused[0] and "code=certificate_revoked" in refused[0]


def test_a_device_that_is_revoked_while_it_trains_is_out_and_the_run_goes_on(run: SecuredRun) -> None:
    out, stays = run.members[1], run.members[0]
    assert out.exit_code is None
    run.authority.revoke("member-1")
    assert wait_for_exit(out, 60) == ExitCode.REFUSED
    assert "this device's certificate was revoked" in log_of(out).splitlines()[-1]
    eventually(lambda: "client=member-1" in log_of(run.server) and "refused a certificate" in log_of(run.server), 10, "the server's log")
    done = run.cluster.rounds_completed()
    eventually(lambda: run.cluster.rounds_completed() > done + 2, 60, "rounds of the device that stays")
    for process in (stays, run.server):
        process.process.send_signal(signal.SIGTERM)
        assert wait_for_exit(process, 60) == ExitCode.OK


def test_a_client_with_a_certificate_sends_nothing_to_a_server_without_tls(cluster: Cluster, authority: Authority) -> None:
    with ThreadPoolExecutor(2) as pool:
        plain = grpc.server(pool)
        cluster.address = f"127.0.0.1:{plain.add_insecure_port('127.0.0.1:0')}"
        plain.start()
        folder = issued(authority, "bed-1")
        trains, checks = device(cluster, 0, folder, give_up_after_seconds=2), device(cluster, 1, folder, check_data=True)
        for process in (trains, checks):
            assert wait_for_exit(process, 60) == ExitCode.UNREACHABLE
            assert f"{cluster.address} speaks no TLS, so nothing is sent to it" in log_of(process).splitlines()[-1]
        plain.stop(0).wait()
