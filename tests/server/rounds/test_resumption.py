"""A server that was killed goes on where it was: which attempts, from which checkpoint, and what happens where something is damaged."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heron_common.errors import CheckpointError
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.rounds import progress
from heron_server.rounds.trainer_queue import TrainerQueue
from tests.harness.polling import eventually
from tests.server.rounds.interrupted import take_part, weights_of
from tests.server.rounds.killed_run import Run, begin_round, damage, edit_ledger, undisturbed, unlike, upload_steps
from tests.server.wire_client import joined


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
    monkeypatch.setattr(progress, "_is_worth_saving", lambda attempt, _: attempt.positions == positions and attempt.covered_bytes() > 0)


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
    monkeypatch.setattr(
        TrainerQueue, "open_round_saved", lambda *_, **__: monkeypatch.setattr(progress, "_is_worth_saving", lambda *_, **__: False)
    )
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
    def refuse(*_: Any, **__: Any) -> None:
        raise CheckpointError("no space left: free some space")

    monkeypatch.setattr(run.server.parts.worker._checkpoints, "write", refuse)


@pytest.mark.parametrize("is_full", [False, True])
def test_rounds_whose_checkpoints_the_disk_refused_are_all_gone_on_with(
    is_full: bool, start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. Round 0 is closed, but its checkpoint is refused. 2. Round 1 is open, and none is taken inside it, even where the spool is full. 3. Killed: both stand.
    expected = undisturbed(start, 2)
    run = start()
    refuse_checkpoints(run, monkeypatch)
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 0)
    if is_full:
        save_inside_the_round_at(monkeypatch, 2)
    begin_round(clients, 1, 2)
    run.trained(4)
    assert not saved_inside(run)
    run.kill()
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 1)
    assert [(record.round_index, record.attempt) for record in run.server.parts.worker.rounds] == [(0, 0), (1, 0)]
    assert unlike(run.tensors(), expected) == []
    assert run.server.parts.ledger.balance().waiting == 0 and run.server.spooled_files == []


def test_an_abandoned_attempt_is_undone_also_where_the_disk_refused_what_it_began_from(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(start, 1)
    run = start()
    refuse_checkpoints(run, monkeypatch)
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 0)
    begin_round(clients, 1, 2)
    run.trained(4)
    assert unlike(run.tensors(), expected), "the attempt has trained something"
    state = run.server.state
    clients[1].stub.Leave(pb.LeaveRequest(session=clients[1].session))
    eventually(lambda: state.attempt is None and state.closing is None, what="the attempt to be given up")
    assert unlike(run.tensors(), expected) == []


def test_a_checkpoint_inside_a_round_stays_while_the_disk_refuses_the_one_after_it(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. Payloads of round 0 are given up to a checkpoint inside it. 2. The one after it is refused. 3. Round 1 is abandoned. 4. Killed: round 0 stands.
    expected = undisturbed(start, 1)
    save_inside_the_round_at(monkeypatch, 2)
    run = start()
    clients = joined(run.server, "a", "b")
    begin_round(clients, 0, 2)
    run.trained(4)
    assert saved_inside(run)
    refuse_checkpoints(run, monkeypatch)
    upload_steps(clients, 0, range(2, 4))
    for place, client in enumerate(clients):
        client.update(weights_of(client, 0, place))
    state = run.server.state
    eventually(lambda: state.machine.round.round_index == 1, what="the round to close")
    begin_round(clients, 1, 1)
    run.trained(2)
    clients[1].stub.Leave(pb.LeaveRequest(session=clients[1].session))
    eventually(lambda: state.attempt is None and state.closing is None, what="the attempt to be given up")
    server = run.kill()
    eventually(lambda: len(server.parts.worker.rounds) == 1, what="the round to be closed again")
    assert [record.attempt for record in server.parts.worker.rounds] == [0]
    assert unlike(run.tensors(), expected) == []


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
