"""Hundreds of rounds with clients that come and go: memory, open files and threads of the server and of a client that stays do not grow."""

from __future__ import annotations

import grpc
import pytest

from heron_common.error_catalog import ERROR_CODE_METADATA
from heron_proto.v1 import split_training_pb2 as pb
from tests.harness.cluster import NARROWEST, Cluster, wait_for_exit
from tests.harness.process_watch import Sample, after_warm_up, bytes_a_round, sample
from tests.server.wire_client import DEADLINE, WireClient

SHAPE = {"eval_data": None, "clients": 2, "min_updates": 2, "local_steps": 2, "batch_size": 8, "model_options": NARROWEST}
ROUNDS_A_SAMPLE = 1
GROUP = 20
"""So many samples in a row are enough to tell how a client rests."""
SPREAD = 5
"""Files and threads of one visitor that is just coming or going, or of a client that is just training (8 to 12 threads); one left behind a round is more."""
CLIENT_BOUND = 2 << 10
"""Bytes a round: a client keeps nothing of a round that is over; 380 to 1370 were measured."""
SERVER_BOUND = 48 << 10
"""Bytes a round. The server keeps a row for each round and, up to a thousand, a record for each client that left; both are copied whole into every
checkpoint and summary, so that the text of one and its copies grow along: 10 to 17 KB were measured alone, 29 beside another suite, with four new clients
in three rounds. A session, its streams or its threads that stayed behind would be more."""


def visit(address: str, number: int) -> None:
    """Join under a new name; then leave at once, in the middle of a round, or after one round. A round may end under a visitor at any time."""
    with WireClient(address, f"visitor-{number:05d}", "v" * 16) as client:
        client.join()
        try:
            if number % 3:
                client.await_assignment()
                client.upload(0)
            if number % 3 == 2:
                client.upload(1)
                client.update()
        except grpc.RpcError as exc:
            assert dict(exc.trailing_metadata() or ()).get(ERROR_CODE_METADATA), exc
        client.stub.Leave(pb.LeaveRequest(session=client.session), timeout=DEADLINE)


def watch(cluster: Cluster, rounds: int) -> tuple[list[Sample], list[Sample]]:
    """Run so many rounds with two clients that stay and others that come and go; return samples of the server and of a client that stays."""
    server = cluster.server(rounds=rounds, **SHAPE)
    stays = cluster.clients(2)
    of_server: list[Sample] = []
    of_client: list[Sample] = []
    number, done = 0, 0
    while done < rounds - ROUNDS_A_SAMPLE:
        # The last visitors must not find a server that is leaving.
        visit(cluster.address, number)
        number += 1
        done = cluster.rounds_completed()
        if not of_server or done >= of_server[-1].rounds + ROUNDS_A_SAMPLE:
            of_server.append(sample(server.process.pid, done))
            of_client.append(sample(stays[0].process.pid, done))
    assert [wait_for_exit(process) for process in (server, *stays)] == [0, 0, 0]
    assert cluster.rounds_completed() == rounds
    return of_server, of_client


def assert_memory_is_flat(name: str, samples: list[Sample], bound: int) -> None:
    """Hold the slope of resident memory in the later two thirds of a run against a bound in bytes a round; `pytest -s` shows it."""
    late = resting(after_warm_up(samples))
    slope = bytes_a_round(late)
    first, last = late[0], late[-1]
    print(
        f"{name}: {slope:.0f} bytes a round, {first.resident_bytes >> 20} MiB at round {first.rounds}, {last.resident_bytes >> 20} at {last.rounds}"
    )
    assert slope < bound, f"{slope:.0f} bytes a round: {[(one.rounds, one.resident_bytes) for one in late]}"


def assert_nothing_stays_open(samples: list[Sample]) -> None:
    """Hold files and threads in the last third of a run against the most that the second third needed."""
    late = after_warm_up(samples)
    half = len(late) // 2
    print(
        f"files {late[0].open_files} and {late[-1].open_files}, threads {late[0].threads} and {late[-1].threads} at rounds {late[0].rounds} and {late[-1].rounds}"
    )
    for name in ("open_files", "threads"):
        before, after = (max(getattr(one, name) for one in part) for part in (late[:half], late[half:]))
        assert after <= before + SPREAD, f"{name} grew from {before} to {after}"


def resting(samples: list[Sample]) -> list[Sample]:
    """Return the lower third of every few samples.

    A client holds up to 11 MB and two threads more while it trains (a third of all samples) than while it waits, and 3 to 8 MB less just after it returned
    its clean pages (one in ten): means, medians and minima are drawn from one of these states or another, the lower third is a client that waits.
    """
    groups = (sorted(samples[start : start + GROUP], key=lambda one: one.resident_bytes) for start in range(0, len(samples), GROUP))
    return [group[len(group) // 3] for group in groups]


@pytest.mark.slow
def test_no_file_and_no_thread_stays_behind(cluster: Cluster) -> None:
    """Thirty rounds are too few for a slope of memory; a file or thread that stays behind with every round or visitor shows."""
    for samples in watch(cluster, 30):
        assert_nothing_stays_open(samples)


@pytest.mark.slow
def test_three_hundred_rounds_leave_memory_files_and_threads_where_they_were(cluster: Cluster) -> None:
    of_server, of_client = watch(cluster, 300)
    assert_memory_is_flat("server", of_server, SERVER_BOUND)
    assert_memory_is_flat("client", of_client, CLIENT_BOUND)
    for samples in (of_server, of_client):
        assert_nothing_stays_open(samples)
    summary = cluster.summary()
    assert len(summary["clients"]) > 100, "clients came and went"
    assert min(row["updates"] for row in summary["rounds"]) >= 2
