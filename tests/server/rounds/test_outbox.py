"""What verbs decide becomes durable in the order in which they decided it, whoever's answer leaves first and wherever a crash comes between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest import mock

import pytest

from heron_common.process.crash_points import CrashPoint
from heron_common.protocol.messages import UploadKey, UploadPurpose
from heron_server.storage import ledger as ledger_module
from tests.server.rounds.restartable_run import LOCAL_STEPS, RestartableRun, RunShape
from tests.server.rounds.run_devices import DrivenRun


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def driven() -> Iterator[DrivenRun]:
    run = DrivenRun()
    run.start(RunShape(clients=2, min_updates=2))
    for name in ("a", "b"):
        run.join(name)
    for name in ("a", "b"):
        run.ask(run.devices[name])
    yield run
    run.end()


def restart(driven: DrivenRun) -> list[UploadKey]:
    """Kill the run with what its ledger has not committed, start it again, and return the uploads that it knows, in their order."""
    driven.run.kill()
    driven.run = RestartableRun(driven.disk, driven.shape, driven.clock, resumes=True)
    attempt = driven.run.state.attempt
    return list(attempt.uploads) if attempt is not None else []


def accept(driven: DrivenRun, name: str, step: int = 0) -> UploadKey:
    """Take in an upload without sending its answer."""
    key, header, data = driven.upload_of(driven.devices[name], UploadPurpose.TRAIN, step, 0)
    driven.receive(header, data)
    return key


def test_an_answer_that_left_makes_durable_what_was_decided_before_it(driven: DrivenRun) -> None:
    # 1. a's upload is accepted, its answer has not left. 2. b's is accepted after it, and its answer leaves. 3. Killed: b was told, so both stand.
    first, second = accept(driven, "a"), accept(driven, "b")
    driven.run.owner.flush()
    accept(driven, "a", step=1)
    assert restart(driven) == [first, second], "and what nobody was told of is lost"


def test_a_crash_before_the_commit_loses_both_and_nobody_was_told(driven: DrivenRun) -> None:
    accept(driven, "a")
    accept(driven, "b")

    def die(point: CrashPoint) -> None:
        if point is CrashPoint.LEDGER_COMMITTING:
            raise Killed

    with mock.patch.object(ledger_module, "crash_point", die), pytest.raises(Killed):
        driven.run.owner.flush()
    assert restart(driven) == []


def test_a_crash_after_the_commit_keeps_both(driven: DrivenRun) -> None:
    keys = [accept(driven, "a"), accept(driven, "b")]

    def die(point: CrashPoint) -> None:
        if point is CrashPoint.LEDGER_COMMITTED:
            raise Killed

    with mock.patch.object(ledger_module, "crash_point", die), pytest.raises(Killed):
        driven.run.owner.flush()
    assert restart(driven) == keys


def test_verbs_that_race_are_in_the_ledger_in_the_order_in_which_they_took_effect(driven: DrivenRun) -> None:
    """Two clients' threads accept and answer at once; each answer that left is of an upload that is on disk, and the order on disk is the owner's."""
    barrier, told = threading.Barrier(2), []

    def work(name: str) -> None:
        for step in range(LOCAL_STEPS):
            barrier.wait(20)
            key = accept(driven, name, step)
            driven.run.owner.flush()
            told.append(key)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    attempt = driven.run.state.attempt
    assert attempt is not None
    order = list(attempt.uploads)
    assert set(told) == set(order) and len(order) == len(told) == 2 * LOCAL_STEPS
    assert restart(driven) == order


def test_a_file_is_deleted_only_once_the_ledger_names_it_no_more(driven: DrivenRun) -> None:
    accept(driven, "a")
    driven.run.owner.flush()
    assert driven.run.queue.ready_job() is not None
    attempt = driven.run.state.attempt
    assert attempt is not None
    upload = next(iter(attempt.uploads.values()))
    driven.run.owner.trained(upload, mock.Mock(loss=None, server_version=0, probe_losses=None), None)
    driven.disk.refuses = True
    driven.run.owner.saved()
    driven.run.owner._outbox.delete_given_up()
    assert len(driven.run.files) == 1, "the disk refuses the entry that gives the file up"
    driven.disk.refuses = False
    driven.run.owner._outbox.delete_given_up()
    assert driven.run.files == {}
