"""Processes die: clients, the server, the network between them. The run goes on."""

from __future__ import annotations

import signal

import pytest

from tests.harness.cluster import Cluster, free_port, log_of, wait_for_exit
from tests.harness.polling import eventually
from tests.harness.proxy import DelayingProxy


@pytest.mark.slow
def test_killing_a_client_neither_hangs_nor_fails_the_run(cluster: Cluster) -> None:
    # 1. Three clients train. 2. One is SIGKILLed in the middle of a round. 3. It is dropped, the round and the run end with two.
    server = cluster.server(clients=3, min_updates=2, rounds=8, liveness_seconds=3, local_steps=20)
    clients = cluster.clients(3)
    eventually(lambda: cluster.rounds_completed() >= 2, 60, "two rounds")
    clients[1].process.send_signal(signal.SIGKILL)
    assert wait_for_exit(server) == 0
    assert [wait_for_exit(clients[0]), wait_for_exit(clients[2])] == [0, 0]
    summary = cluster.summary()
    assert summary["rounds_completed"] == 8
    assert summary["rounds"][-1]["updates"] == 2
    assert "client dropped from the round" in log_of(server)


def test_sigterm_drains_and_resume_finishes_the_run(cluster: Cluster) -> None:
    # 1. SIGTERM in the middle. 2. The server checkpoints and exits 0. 3. The clients keep knocking. 4. --resume on the same port finishes.
    port = free_port()
    server = cluster.server(clients=2, rounds=6, local_steps=20, listen=f"127.0.0.1:{port}")
    clients = cluster.clients(2)
    eventually(lambda: cluster.rounds_completed() >= 2, 60, "two rounds")
    server.process.send_signal(signal.SIGTERM)
    assert wait_for_exit(server) == 0
    before = cluster.rounds_completed()
    assert 2 <= before < 6
    assert all(client.exit_code is None for client in clients)
    resumed = cluster.server(clients=2, rounds=6, local_steps=20, listen=f"127.0.0.1:{port}", resume=True)
    assert wait_for_exit(resumed) == 0
    assert [wait_for_exit(client) for client in clients] == [0, 0]
    rounds = cluster.summary()["rounds"]
    assert [r["round_index"] for r in rounds] == list(range(6))
    # The round that was cut went on where it was.
    assert {r["attempt"] for r in rounds} == {0}


@pytest.mark.slow
def test_sigkill_of_the_server_costs_nothing(cluster: Cluster) -> None:
    port = free_port()
    server = cluster.server(clients=2, rounds=5, local_steps=20, listen=f"127.0.0.1:{port}")
    clients = cluster.clients(2)
    eventually(lambda: cluster.rounds_completed() >= 2, 60, "two rounds")
    server.process.send_signal(signal.SIGKILL)
    wait_for_exit(server)
    before = cluster.summary()["rounds"]
    resumed = cluster.server(clients=2, rounds=5, local_steps=20, listen=f"127.0.0.1:{port}", resume=True)
    assert wait_for_exit(resumed) == 0
    assert [wait_for_exit(client) for client in clients] == [0, 0]
    rounds = cluster.summary()["rounds"]
    assert len(rounds) == 5
    assert rounds[: len(before)] == before and {r["attempt"] for r in rounds} == {0}


@pytest.mark.slow
def test_a_killed_client_comes_back_under_its_name_and_takes_part(cluster: Cluster) -> None:
    server = cluster.server(clients=2, min_updates=1, rounds=14, liveness_seconds=4, local_steps=20)
    clients = cluster.clients(2)
    eventually(lambda: cluster.rounds_completed() >= 1, 60, "a round")
    clients[0].process.send_signal(signal.SIGKILL)
    wait_for_exit(clients[0])
    again = cluster.client(0, 2)
    assert [wait_for_exit(server), wait_for_exit(again), wait_for_exit(clients[1])] == [0, 0, 0]
    assert cluster.summary()["rounds"][-1]["updates"] == 2


@pytest.mark.slow
def test_cut_connections_are_repaired_and_nothing_is_trained_twice(cluster: Cluster) -> None:
    # 1. A client's connections are reset again and again. 2. It repeats what was cut. 3. Every upload is trained exactly once.
    steps, rounds = 10, 4
    server = cluster.server(preset="frozen", clients=1, rounds=rounds, local_steps=steps, batch_size=1024, liveness_seconds=20)
    with DelayingProxy(cluster.address, 0.004, seed=3) as proxy:
        client = cluster.client(0, 1, proxy.address)
        cuts = 0
        while server.exit_code is None and cuts < 6:
            passed = proxy.bytes_forwarded
            eventually(lambda passed=passed: proxy.bytes_forwarded > passed + 400_000 or server.exit_code is not None, 60, "traffic")
            proxy.cut()
            cuts += 1
        assert [wait_for_exit(server), wait_for_exit(client)] == [0, 0]
    assert cuts >= 3
    assert "upload failed, will be repeated" in log_of(client) or "trying again" in log_of(client)
    # Adam counts its steps: one for each upload of each round.
    assert int(cluster.final_tensors()["optimiser.back.0.step"]) == steps * rounds


def test_sigterm_to_a_client_leaves_at_once_and_exits_0(cluster: Cluster) -> None:
    server = cluster.server(clients=2, min_updates=1, rounds=1, round_deadline_seconds=60, local_steps=400)
    clients = cluster.clients(2)
    eventually(lambda: "round opened" in log_of(server), 60, "an open round")
    # A client that does not know yet that it has joined has nothing to say goodbye to.
    eventually(lambda: all("joined" in log_of(client) for client in clients), 60, "both clients to have joined")
    clients[0].process.send_signal(signal.SIGTERM)
    assert wait_for_exit(clients[0], 20) == 0
    eventually(lambda: "client left" in log_of(server), 10, "the goodbye")
    clients[1].process.send_signal(signal.SIGTERM)
    assert wait_for_exit(clients[1], 20) == 0
    server.process.send_signal(signal.SIGTERM)
    assert wait_for_exit(server, 30) == 0


def test_a_second_signal_forces_the_server_out(cluster: Cluster) -> None:
    server = cluster.server(clients=1, grace_seconds=300, liveness_seconds=300)
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGINT)
    assert wait_for_exit(server, 20) in (0, 130)


def test_a_server_with_too_few_clients_waits_and_a_round_without_quorum_is_repeated(cluster: Cluster) -> None:
    # 1. Two clients are needed. 2. One leaves during the round: the attempt is abandoned. 3. It comes back: the round is repeated and closes.
    server = cluster.server(clients=2, min_updates=2, rounds=1, local_steps=60, liveness_seconds=5)
    clients = cluster.clients(2)
    eventually(lambda: "round opened" in log_of(server), 60, "an open round")
    clients[0].process.send_signal(signal.SIGTERM)
    eventually(lambda: "attempt abandoned" in log_of(server), 20, "the abandoned attempt")
    again = cluster.client(0, 2)
    assert [wait_for_exit(server), wait_for_exit(again), wait_for_exit(clients[1])] == [0, 0, 0]
    assert cluster.summary()["rounds"][0]["attempt"] >= 1
