"""A server that was killed goes on where it was: which attempts, from which checkpoint, with whom, and what happens where something is damaged."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from heron_common.error_catalog import ErrorCode
from heron_common.errors import CheckpointError
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.rounds.state import MemberStatus, Phase
from heron_server.rounds.worklist import Worklist
from tests.harness.polling import eventually
from tests.server.interrupted import batch_seed, joined, send, take_part, weights_of
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import WireClient, refused

Tensors = dict[str, torch.Tensor]


class Run:
    """One run whose server is killed: its directory is copied as it is at that moment, and a new server goes on from the copy."""

    def __init__(self, directory: Path, cache: Path, trains: bool = True, **options: Any) -> None:
        self._options = {"program_cache": cache, "clients": 2, "min_updates": 2, "local_steps": 4, "server_schedule": "lockstep", **options}
        self._directory = directory
        self._servers: list[RunningServer] = []
        self.start(trains=trains)

    @property
    def server(self) -> RunningServer:
        return self._servers[-1]

    @property
    def path(self) -> Path:
        return self.server.directory.path

    def start(self, resume: bool = False, trains: bool = True) -> RunningServer:
        given = {**self._options, **({"resume": True} if resume else {})}
        self._servers.append(RunningServer(tiny_config(run_dir=self._directory, **given), trains))
        return self.server

    def kill(self, between: Callable[[Path], None] = lambda _: None) -> RunningServer:
        copied = self._directory.with_name(f"{self._directory.name}-copy")
        shutil.copytree(self._directory, copied)
        self.stop()
        self._directory = copied
        between(copied)
        return self.start(resume=True)

    def stop(self) -> None:
        self.server.stop()

    @property
    def reopened(self) -> pb.RoundReference:
        attempt = self.server.parts.coordinator.attempt
        assert attempt is not None
        return pb.RoundReference(round_index=attempt.assignment.round.round_index, attempt=attempt.assignment.round.attempt)

    def trained(self, count: int) -> None:
        """Wait until so many uploads of the open attempt are trained."""
        eventually(
            lambda: self.server.untrained == 0 and (a := self.server.parts.coordinator.attempt) and a.positions == count, what="training"
        )

    def tensors(self) -> Tensors:
        return self.server.parts.worker._tensors()


@pytest.fixture
def start(tmp_path: Path, program_cache_dir: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(name: str = "run", **options: Any) -> Run:
        runs.append(Run(tmp_path / name, program_cache_dir, **options))
        return runs[-1]

    yield begin
    for run in runs:
        run.stop()


def begin_round(clients: list[WireClient], round_index: int, steps: int) -> None:
    """All clients ask for work and upload the first steps of a round."""
    for client in clients:
        client.await_assignment(after=client.assignment.round if client.assignment.HasField("round") else None)
    upload_steps(clients, round_index, range(steps))


def upload_steps(clients: list[WireClient], round_index: int, steps: range) -> None:
    for step in steps:
        for place, client in enumerate(clients):
            send(client, step, batch_seed(round_index, step, place))


def undisturbed(start: Callable[..., Run], rounds: int, **options: Any) -> Tensors:
    run = start("undisturbed", **options)
    clients = joined(run.server, "a", "b")
    for index in range(rounds):
        take_part(run.server, clients, index)
    return run.tensors()


def unlike(one: Tensors, other: Tensors) -> list[str]:
    return [name for name in sorted({*one, *other}) if name not in one or name not in other or not torch.equal(one[name], other[name])]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(bytes(data))


def edit_ledger(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path / "ledger.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


def lose_a_payload(path: Path) -> None:
    max((path / "spool").glob("*.upload")).unlink()


def change_the_inputs(path: Path) -> None:
    edit_ledger(path, "UPDATE attempts SET inputs_sha256 = 'of other weights'")


@pytest.mark.parametrize("between", [lose_a_payload, change_the_inputs])
def test_a_round_that_cannot_be_gone_on_with_is_repeated_as_a_new_attempt(
    between: Callable[[Path], None], start: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    boundary = run.tensors()
    begin_round(joined(run.server, "a", "b"), 0, 2)
    run.trained(4)
    with caplog.at_level(logging.WARNING):
        server = run.kill(between)
    assert "an open round cannot be gone on with and is repeated" in caplog.text
    assert server.spooled_files == [] and server.spooled_bytes == 0
    assert unlike(run.tensors(), boundary) == []
    take_part(server, joined(server, "a", "b"), 0)
    assert [record.attempt for record in server.parts.worker.rounds] == [1]
    balance = server.parts.ledger.balance()
    assert (balance.trained, balance.rejected, balance.waiting) == (8, 4, 0)


def save_inside_the_round_at(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    """Let the trainer write its checkpoint inside a round as soon as so many uploads are done with, and no other."""
    monkeypatch.setattr(Worklist, "_is_worth_saving", lambda _, attempt: attempt.positions == positions and attempt.covered_bytes() > 0)


def saved_inside(run: Run) -> bool:
    return (run.path / "checkpoints" / "open.json").exists()


def test_a_checkpoint_inside_the_round_covers_what_was_trained_before_it(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(start, 1)
    save_inside_the_round_at(monkeypatch, 2)
    run = start()
    clients = joined(run.server, "a", "b")
    begin_round(clients, 0, 2)
    run.trained(4)
    assert saved_inside(run) and len(run.server.spooled_files) == 2
    run.kill()
    run.trained(4)
    assert run.server.sample("uploads_total", outcome="trained") == 2, "what the checkpoint covers is not trained again"
    take_part(run.server, joined(run.server, "a", "b"), 0)
    assert [record.attempt for record in run.server.parts.worker.rounds] == [0]
    assert unlike(run.tensors(), expected) == []
    assert not saved_inside(run)


def test_payloads_that_were_to_be_given_up_when_the_server_was_killed_are_removed(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The checkpoint inside the round is written, and nothing was released yet.
    save_inside_the_round_at(monkeypatch, 2)
    monkeypatch.setattr(Worklist, "open_round_saved", lambda *_: monkeypatch.setattr(Worklist, "_is_worth_saving", lambda *_: False))
    run = start()
    begin_round(joined(run.server, "a", "b"), 0, 2)
    run.trained(4)
    assert saved_inside(run) and len(run.server.spooled_files) == 4
    run.kill()
    assert len(run.server.spooled_files) == 2
    take_part(run.server, joined(run.server, "a", "b"), 0)
    assert run.server.spooled_files == [] and run.server.spooled_bytes == 0


def test_a_round_with_a_checkpoint_inside_that_cannot_be_gone_on_with_goes_back_to_its_beginning(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model that the checkpoint holds has steps of the attempt that is undone.
    save_inside_the_round_at(monkeypatch, 2)
    run = start()
    boundary = run.tensors()
    begin_round(joined(run.server, "a", "b"), 0, 2)
    run.trained(4)
    assert saved_inside(run)
    run.kill(lose_a_payload)
    assert unlike(run.tensors(), boundary) == []
    assert not saved_inside(run)
    take_part(run.server, joined(run.server, "a", "b"), 0)
    (record,) = run.server.parts.worker.rounds
    assert record.attempt == 1 and record.server_loss is not None


def test_a_damaged_checkpoint_inside_the_round_repeats_the_round_once_its_payloads_were_given_up(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_inside_the_round_at(monkeypatch, 2)
    run = start()
    boundary = run.tensors()
    begin_round(joined(run.server, "a", "b"), 0, 2)
    run.trained(4)
    with caplog.at_level(logging.WARNING):
        run.kill(lambda path: damage(*(path / "checkpoints").glob("open-*.safetensors")))
    assert "a checkpoint is damaged" in caplog.text and "the round is repeated" in caplog.text
    assert unlike(run.tensors(), boundary) == [] and run.server.spooled_files == []
    take_part(run.server, joined(run.server, "a", "b"), 0)
    assert [record.attempt for record in run.server.parts.worker.rounds] == [1]


def test_a_damaged_newest_checkpoint_repeats_its_round_and_the_open_one(
    start: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    # 1. Round 0 is closed, round 1 is open. 2. Killed, and the checkpoint between them is damaged. 3. Both are repeated, from the one before.
    run = start()
    boundary = run.tensors()
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 0)
    begin_round(clients, 1, 1)
    run.trained(2)
    with caplog.at_level(logging.WARNING):
        run.kill(lambda path: damage(path / "checkpoints" / "round-000001.safetensors"))
    assert "a checkpoint is damaged, using the one before" in caplog.text
    assert "an open round began from a checkpoint that is damaged: it is repeated" in caplog.text
    assert unlike(run.tensors(), boundary) == []
    clients = joined(run.server, "a", "b")
    for index in range(2):
        take_part(run.server, clients, index)
    assert [(record.round_index, record.attempt) for record in run.server.parts.worker.rounds] == [(0, 1), (1, 1)]
    assert run.server.parts.ledger.balance().waiting == 0 and run.server.spooled_files == []


def refuse_checkpoints(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise CheckpointError("no space left: free some space")

    monkeypatch.setattr(run.server.parts.worker._parts.checkpoints, "write", refuse)


@pytest.mark.parametrize("saves_inside", [False, True])
def test_rounds_whose_checkpoints_the_disk_refused_are_all_gone_on_with(
    saves_inside: bool, start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. Round 0 is closed, but its checkpoint is refused. 2. Round 1 is open, with a checkpoint inside it or without. 3. Killed: both stand.
    expected = undisturbed(start, 2)
    run = start()
    refuse_checkpoints(run, monkeypatch)
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 0)
    if saves_inside:
        save_inside_the_round_at(monkeypatch, 2)
    begin_round(clients, 1, 2)
    run.trained(4)
    assert saved_inside(run) == saves_inside
    run.kill()
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 1)
    assert [(record.round_index, record.attempt) for record in run.server.parts.worker.rounds] == [(0, 0), (1, 0)]
    assert unlike(run.tensors(), expected) == []
    assert run.server.parts.ledger.balance().waiting == 0 and run.server.spooled_files == []


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_with_resume(start: Callable[..., Run]) -> None:
    expected = undisturbed(start, 1)
    run = start()
    server = run.kill(lambda path: shutil.rmtree(path / "checkpoints"))
    take_part(server, joined(server, "a", "b"), 0)
    assert unlike(run.tensors(), expected) == []


def test_a_run_that_has_lost_all_its_checkpoints_is_refused(start: Callable[..., Run]) -> None:
    run = start()
    begin_round(joined(run.server, "a", "b"), 0, 1)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        run.kill(lambda path: shutil.rmtree(path / "checkpoints"))


# ---- who is there ---------------------------------------------------------------------------------------------------------------


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
    assert [record.name for record in server.parts.coordinator.registry.live_records()] == ["b"]
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
    run.server.parts.coordinator.drain()
    run.server.start_training()
    assert run.server.parts.worker.join(20) and run.server.parts.coordinator.attempt is None
    server = run.kill()
    assert server.parts.coordinator.attempt is not None and server.parts.coordinator.attempt.cohort == ("a", "b", "c")


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
    assert server.parts.coordinator.machine.members(MemberStatus.TRAINING) == ("a", "b")
    server.advance(0.5)
    assert server.parts.coordinator.machine.members(MemberStatus.DROPPED) == ("b",)
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
    assert server.parts.coordinator.machine.phase is Phase.TRAINING
    server.advance(11)
    eventually(lambda: server.sample("rounds_abandoned_total") == 1, what="the deadline")


def test_a_finished_run_waits_for_those_who_have_not_heard_of_it(start: Callable[..., Run]) -> None:
    run = start(rounds=1)
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 0)
    clients[0].stub.Leave(pb.LeaveRequest(session=clients[0].session), timeout=20)
    server = run.kill()
    assert server.parts.coordinator.machine.phase is Phase.FINISHED
    assert server.parts.coordinator.registry.num_live == 1
    (b,) = joined(server, "b")
    assert b.ask().HasField("finished")
    b.stub.Leave(pb.LeaveRequest(session=b.session), timeout=20)
    server.parts.reception.wait_until_empty(20)
    assert server.parts.coordinator.registry.num_live == 0
