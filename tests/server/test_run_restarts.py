"""Crashes at places that random lives found, or seldom find: what was acknowledged stays, and is trained once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from heron_common.plan import ServerSchedule
from tests.server.restartable_run import RunShape
from tests.server.test_run_machine import RunLife


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
    before = life.run.coordinator.attempt
    assert before is not None
    life.crash_or_drain(drains=False)
    after = life.run.coordinator.attempt
    assert after is not None and after.assignment.round == before.assignment.round and after.positions == 2
    check(life)
    life.do_rounds(("a",), in_turn=False, rounds=1)
    assert life.run.trainer.rounds[0][:2] == [0, 0], "the first attempt was closed"


def test_a_checkpoint_inside_a_round_stands_for_the_one_that_the_disk_refused(life: RunLife) -> None:
    life.begin(RunShape(clients=1))
    life.go_on("a", 4)
    life.the_disk_refuses("checkpoints")
    life.work(40)
    assert len(life.run.trainer.rounds) == 1 and max(life.disk.boundary) == 0
    life.the_disk_refuses("nothing")
    life.go_on("a", 2)
    life.work(40)
    life.run.save_inside_round()
    life.crash_or_drain(drains=False)
    assert len(life.run.trainer.rounds) == 1, "the closed round need not be closed again"
    assert life.run.coordinator.attempt is not None and life.run.coordinator.attempt.positions == 2
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
