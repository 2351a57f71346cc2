"""What a run remembers of clients that come and go: bounded, and its totals stay exact."""

from __future__ import annotations

from pathlib import Path

from heron_common.ids import RoundReference
from heron_common.process.clock import ManualClock
from heron_common.protocol.messages import PeakMemory, UploadLoss
from heron_server.rounds.clients import FORGOTTEN, MAX_DEPARTED, MAX_LOSSES, ClientRecord, ClientRegistry
from heron_server.rounds.visits import VISITS_BY_ADDRESS
from heron_server.summary import client_table, restore_clients
from tests.server.rounds.restartable_run import LIVENESS, Disk, RestartableRun, RunShape

KEY = "k" * 16
VISITORS = 10_000


def test_ten_thousand_clients_that_come_and_go_leave_a_bounded_trace(tmp_path: Path) -> None:
    clock = ManualClock(0.0)
    run = RestartableRun(Disk(tmp_path), RunShape(clients=2, min_updates=2), clock, resumes=False)
    registry, owner = run.state.registry, run.owner
    for number in range(VISITORS):
        session = owner.join(f"visitor-{number}", KEY, num_examples=3, version="test").session
        record = owner.client(session)
        owner.note(record, "up", kind="control", size_bytes=5)
        if number % 2:
            owner.leave(record, "", PeakMemory(1000 + number, 500 + number))
        else:
            clock.advance(LIVENESS + 1)
            owner.tick()
        owner.visit()
    owner.tick()
    assert registry.num_live == 0
    assert len(registry.by_name) == MAX_DEPARTED + 1, "the last that departed is cut off when another joins"
    assert len(registry._by_session) <= MAX_DEPARTED + 1 and len(run.state.visits) == VISITS_BY_ADDRESS
    assert not run.state.orphaned_streams and not run.state.machine.live
    table = client_table(registry.records())
    assert table[FORGOTTEN]["clients"] + len(table) - 1 == VISITORS
    assert sum(row["examples"] for row in table.values()) == 3 * VISITORS
    assert sum(row["bytes_up"]["control"] for row in table.values()) == 5 * VISITORS
    assert max(row["peak_memory_bytes"] for row in table.values()) == 1000 + VISITORS - 1
    run.kill()


def test_a_restart_takes_up_what_was_added_up() -> None:
    registry = ClientRegistry(5)
    for number in range(MAX_DEPARTED + 7):
        registry.join(f"c{number}", KEY).rounds_completed = 1
        registry.depart(f"c{number}", forget_session=True)
    registry.forget_departed()
    table = client_table(registry.records())
    assert table[FORGOTTEN]["clients"] == table[FORGOTTEN]["rounds_completed"] == 7
    again = ClientRegistry(5)
    restore_clients(table, again.recall)
    assert client_table(again.records()) == table
    assert again.num_live == 0


def test_members_of_the_open_round_are_not_forgotten() -> None:
    registry = ClientRegistry(5)
    for number in range(MAX_DEPARTED + 2):
        registry.join(f"c{number}", KEY)
        registry.depart(f"c{number}", forget_session=False)
    registry.forget_departed(but=("c0", "c1"))
    assert {"c0", "c1"} <= registry.by_name.keys() and not {"c2", "c3"} & registry.by_name.keys()


def test_one_that_comes_back_is_not_forgotten_and_keeps_its_tally() -> None:
    registry = ClientRegistry(5)
    registry.join("a", KEY).rounds_completed = 4
    registry.depart("a", forget_session=True)
    registry.join("a", KEY)
    for number in range(MAX_DEPARTED + 2):
        registry.join(f"c{number}", KEY)
        registry.depart(f"c{number}", forget_session=False)
    registry.forget_departed()
    assert registry.by_name["a"].rounds_completed == 4 and registry.forgotten.stands_for == 2


def test_losses_of_a_client_that_never_says_what_it_has_are_bounded() -> None:
    record = ClientRecord("a", "")
    for step in range(3 * MAX_LOSSES):
        record.add_loss(UploadLoss(RoundReference(0, 0), step, server_loss=1.0, server_version=step))
    kept = record.losses_after(0)
    assert [loss.local_step for loss in kept] == list(range(2 * MAX_LOSSES, 3 * MAX_LOSSES))
