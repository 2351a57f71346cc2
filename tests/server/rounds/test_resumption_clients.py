"""With whom a server that was killed goes on: names, silence, deadlines, and who has not heard of the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from heron_common.error_catalog import ErrorCode
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.rounds.state import MemberStatus, Phase
from tests.harness.polling import eventually
from tests.server.rounds.interrupted import batch_seed, send, take_part, weights_of
from tests.server.rounds.killed_run import Run, begin_round
from tests.server.wire_client import WireClient, joined, refused


def at_work(run: Run) -> None:
    begin_round(joined(run.server, "a", "b"), 0, 1)


def submitted(run: Run) -> None:
    clients = joined(run.server, "a", "b")
    begin_round(clients, 0, 0)
    for step in range(4):
        for place, client in enumerate(clients):
            send(client, step, batch_seed(0, step, place))
    clients[0].update(weights_of(clients[0], 0, 0))


def waiting(run: Run) -> None:
    joined(run.server, "a")


@pytest.mark.parametrize("situation", [at_work, submitted, waiting])
def test_nobody_else_takes_the_name_of_a_client_that_was_there(situation: Callable[[Run], None], start: Callable[..., Run]) -> None:
    run = start()
    situation(run)
    server = run.kill()
    with WireClient(server.target, "a", identity_key="x" * 20) as stranger, refused(server, ErrorCode.NAME_IN_USE):
        stranger.join()
    with WireClient(server.target, "a") as own:
        own.join()


def test_who_left_is_not_waited_for(start: Callable[..., Run]) -> None:
    run = start()
    a, b = joined(run.server, "a", "b")
    a.stub.Leave(pb.LeaveRequest(session=a.session), timeout=20)
    server = run.kill()
    assert [record.name for record in server.state.registry.live_records()] == ["b"]
    with WireClient(server.target, "a", identity_key="x" * 20) as other:
        other.join()
    b.channel.close()


def test_a_round_that_was_about_to_open_takes_in_everybody_who_was_there(start: Callable[..., Run]) -> None:
    # Five are expected and three came: the next round would have opened at once with the three, so it does after a kill before it.
    run = start(trains=False, clients=5, min_updates=1, server_schedule="arrival")
    clients = joined(run.server, "a", "b", "c")
    run.server.advance(run.server.config.rounds.cohort_wait_seconds)
    begin_round(clients, 0, 4)
    for place, client in enumerate(clients):
        client.update(weights_of(client, 0, place))
    run.server.parts.owner.drain()
    run.server.start_training()
    assert run.server.parts.worker.join(20) and run.server.state.attempt is None
    server = run.kill()
    assert server.state.attempt is not None and server.state.attempt.cohort == ("a", "b", "c")


def test_a_member_that_does_not_come_back_is_dropped_after_a_silence_that_begins_with_the_restart(start: Callable[..., Run]) -> None:
    run = start(min_updates=1, server_schedule="arrival")
    begin_round(joined(run.server, "a", "b"), 0, 1)
    run.trained(2)
    run.server.advance(run.server.config.rounds.liveness_seconds * 0.9)
    server = run.kill()
    (a,) = joined(server, "a")
    a.await_assignment()
    server.advance(server.config.rounds.liveness_seconds)
    a.ask()
    assert server.state.machine.members(MemberStatus.TRAINING) == ("a", "b")
    server.advance(0.5)
    assert server.state.machine.members(MemberStatus.DROPPED) == ("b",)
    assert server.sample("dropped_clients_total", reason="went_silent") == 1
    for step in range(4):
        send(a, step, batch_seed(0, step, 0))
    a.update()
    eventually(lambda: len(server.parts.worker.rounds) == 1, what="the round to close with one")
    assert (server.parts.worker.rounds[0].attempt, server.parts.worker.rounds[0].updates) == (0, 1)


def test_the_deadline_of_a_round_starts_anew(start: Callable[..., Run]) -> None:
    run = start(round_deadline_seconds=100, liveness_seconds=1000)
    begin_round(joined(run.server, "a", "b"), 0, 1)
    run.server.advance(90)
    server = run.kill()
    server.advance(90)
    assert server.state.machine.phase is Phase.TRAINING
    server.advance(11)
    eventually(lambda: server.sample("rounds_abandoned_total") == 1, what="the deadline")


def test_a_finished_run_waits_for_those_who_have_not_heard_of_it(start: Callable[..., Run]) -> None:
    run = start(rounds=1)
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 0)
    clients[0].stub.Leave(pb.LeaveRequest(session=clients[0].session), timeout=20)
    server = run.kill()
    assert server.state.machine.phase is Phase.FINISHED
    assert server.state.registry.num_live == 1
    (b,) = joined(server, "b")
    assert b.ask().HasField("finished")
    b.stub.Leave(pb.LeaveRequest(session=b.session), timeout=20)
    server.parts.owner.wait_until_empty(20)
    assert server.state.registry.num_live == 0
