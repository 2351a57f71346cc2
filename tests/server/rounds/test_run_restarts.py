"""Crashes at places that random lives found, or seldom find: what was acknowledged stays, and is trained once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from heron_common.algorithm.algorithm import ServerSchedule
from heron_server.rounds.jobs import AbandonJob
from heron_server.rounds.state import WithoutQuorum
from tests.server.rounds.restartable_run import RunShape
from tests.server.rounds.run_life import Snapshot
from tests.server.rounds.test_run_machine import RunLife


@pytest.fixture
def life() -> Iterator[RunLife]:
    """A run and its devices, driven by hand; `check` looks at everything that always holds."""
    made = RunLife()
    yield made
    check(made)
    made.teardown()


def check(life: RunLife) -> None:
    life.everything_acknowledged_is_trained_exactly_once()
    life.training_again_gives_what_was_told()
    life.an_attempt_has_one_number_and_one_cohort()
    life.the_spool_holds_what_is_needed()
    life.open_the_books()


def test_a_crash_between_a_checkpoint_inside_a_round_and_the_ledger_does_not_repeat_the_round(life: RunLife) -> None:
    """Files of payloads and gradients were deleted, and the entries that say so were lost."""
    life.begin(RunShape("sflv2", ServerSchedule.SEQUENTIAL, clients=1))
    life.go_on("a", 2)
    life.run.save_inside_round()
    before = life.run.state.attempt
    assert before is not None
    life.crash_or_drain(drains=False)
    after = life.run.state.attempt
    assert after is not None and after.assignment.round == before.assignment.round and after.positions == 2
    check(life)
    life.do_rounds(("a",), in_turn=False, rounds=1)
    assert life.run.trainer.rounds[0][:2] == [0, 0], "the first attempt was closed"


def test_no_checkpoint_inside_a_round_is_taken_where_the_disk_refused_the_one_before_it(life: RunLife) -> None:
    """After a restart from it the round could not be abandoned: nothing would hold what it started from."""
    life.begin(RunShape(clients=1))
    life.go_on("a", 4)
    life.the_disk_refuses("checkpoints")
    life.work(40)
    assert len(life.run.trainer.rounds) == 1 and max(life.disk.boundary) == 0
    life.the_disk_refuses("nothing")
    life.go_on("a", 2)
    life.work(40)
    life.run.save_inside_round()
    assert life.disk.inside == {}
    life.crash_or_drain(drains=False)
    life.work(40)
    assert max(life.disk.boundary) == 1, "the closed round is closed again, and saved"
    check(life)
    life.do_rounds(("a",), in_turn=False, rounds=1)
    assert len(life.run.trainer.rounds) >= 2 and all(entry[1] == 0 for entry in life.run.trainer.rounds)


def test_what_was_done_in_another_order_before_a_crash_is_not_taken_for_covered(life: RunLife) -> None:
    """Held-out samples that are scored first after a restart push training back; a checkpoint then covers less than the old numbers say."""
    life.begin(RunShape(clients=2, min_updates=2, evaluation_batches=1))
    for name in ("a", "b"):
        life.ask(life.devices[name])
    life.go_on("a", 1)
    life.work(2)
    life.go_on("b", 1)
    life.work(1)
    life.open_the_books()
    life.crash_or_drain(drains=False)
    life.work(2)
    life.run.save_inside_round()
    life.open_the_books()
    life.crash_or_drain(drains=False)
    life.do_rounds(("a", "b"), in_turn=True, rounds=1)
    assert len(life.run.trainer.rounds) >= 1


def test_what_a_restart_trains_again_waits_in_the_books_until_then_and_keeps_its_answer(life: RunLife) -> None:
    life.begin(RunShape("heron-server-loss", min_updates=2))
    for name in ("a", "b"):
        life.ask(life.devices[name])
    life.go_on("a", 3)
    assert life.run.ledger.balance().trained == 3
    life.crash()
    assert life.run.ledger.balance().waiting == 3
    life.work(1)
    life.open_the_books()
    assert life.run.ledger.balance().waiting == 2
    life.begin_the_round_again("a")
    life.work(40)
    assert life.run.ledger.balance().waiting == 0


def test_a_round_skipped_without_a_quorum_accounts_for_every_upload_wherever_a_crash_comes() -> None:
    """Its uploads were set back by a restart, and are rejected with it: at no point are they neither waiting for the trainer nor settled."""
    hit, crashed = 0, True
    while crashed:
        life = RunLife()
        life.begin(RunShape("heron-server-loss", min_updates=2, without_quorum=WithoutQuorum.SKIP, spool_bytes=800))
        for name in ("a", "b"):
            life.ask(life.devices[name])
        life.go_on("a", 3)
        life.crash()
        crashed = life.crash_during(lambda life=life: skip_the_round(life), hit)  # type: ignore[misc]
        check(life)
        skip_the_round(life)
        check(life)
        balance = life.run.ledger.balance()
        assert (balance.accepted, balance.rejected, balance.waiting) == (3, 3, 0)
        assert all(taken is None for _, _, taken, _ in life.run.trainer.rounds) and life.run.files == {}
        life.teardown()
        hit += 1
    assert hit > 8, "a step, commits, and the decision were among the places"


def skip_the_round(life: RunLife) -> None:
    """Let the trainer take one upload, and a member leave that the quorum needs."""
    life.work(1)
    life.join("a")
    life.leave_or_join_again("a", leaves=True)
    assert life.run.state.attempt is None or isinstance(life.run.state.closing, AbandonJob)
    life.work(40)
    life.run.ledger.sync()


def test_a_payload_that_a_restart_finds_covered_is_named_no_more(life: RunLife) -> None:
    """The process that took the checkpoint was killed before the ledger said so, and the one after it deleted the file: its name was given again."""
    life.begin(RunShape(min_updates=2))
    for name in ("a", "b"):
        life.ask(life.devices[name])
    life.go_on("a", 1)
    life.work(1)
    life.run.ledger.sync()
    assert life.crash_during(life.run.save_inside_round, 0)
    assert life.run.state.attempt is not None and life.run.state.attempt.positions == 1
    assert life.run.files == {} and life.run.ledger.attempts()[0].files() == set()
    life.crash()
    assert life.run.state.attempt is not None
    life.go_on("b", 2)
    # Damaged, which undoes the attempt. By the old names uploads would be read from files of others; the trainer compares what it reads with what came.
    life.disk.inside.clear()
    life.undone.add(life.run.state.attempt.assignment.round)
    life.crash()
    life.do_rounds(("a", "b"), in_turn=True, rounds=1)
    assert [entry[:2] for entry in life.run.trainer.rounds[:1]] == [[0, 1]], "the round is repeated, for its payloads were given up"


def test_a_restart_deletes_what_is_covered_only_once_the_ledger_names_it_no_more(life: RunLife, monkeypatch: pytest.MonkeyPatch) -> None:
    life.begin(RunShape(min_updates=2))
    for name in ("a", "b"):
        life.ask(life.devices[name])
    life.go_on("a", 1)
    life.work(1)
    monkeypatch.setattr(life.run.queue, "open_round_saved", lambda *_, **__: None)
    life.run.save_inside_round()
    seen = []
    take_snapshot = life.take_snapshot

    def look() -> Snapshot:
        snapshot = take_snapshot()
        seen.append({path.name for path in (snapshot.disk.directory / "spool").iterdir()})
        return snapshot

    monkeypatch.setattr(life, "take_snapshot", look)
    assert life.crash_during(life.crash, 0), "the restart commits what it gives up"
    assert seen == [{"000000000.upload"}] and life.run.files == {}
