"""What a run adds up for its summary: seconds as clients report them, drops and abandoned attempts that outlive their round."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from heron_common.ids import RoundReference
from heron_common.protocol.messages import LocalStatistics
from heron_server.rounds.clients import FORGOTTEN
from heron_server.rounds.jobs import CloseJob
from heron_server.storage.ledger import Ledger
from heron_server.training.tallies import RunTallies

TABLE = {
    "a": {"bytes_up": {"activations": 30, "labels": 2}, "bytes_down": {"weights": 7}},
    "b": {"bytes_up": {"update": 10}, "bytes_down": {}},
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", "run", begins=True, durable=False)


def tallies_over(ledger: Ledger) -> RunTallies:
    return RunTallies(lambda: TABLE, ledger)


def closing(**seconds: tuple[float, float]) -> CloseJob:
    """Return the end of a round whose clients report these seconds in steps and in waits."""
    updates: list[Any] = [
        SimpleNamespace(client_id=name, statistics=LocalStatistics(step_seconds=step, upload_wait_seconds=wait))
        for name, (step, wait) in seconds.items()
    ]
    return cast(CloseJob, SimpleNamespace(updates=updates))


def test_a_rounds_seconds_are_means_and_a_clients_are_sums(ledger: Ledger) -> None:
    tallies = tallies_over(ledger)
    first = tallies.close_round(closing(a=(5.0, 2.0), b=(1.0, 0.0)), 6.0)
    assert first == {"compute_seconds": 2.0, "upload_wait_seconds": 1.0, "bytes_up_so_far": 42, "bytes_down_so_far": 7}
    tallies.close_round(closing(a=(4.0, 1.0)), 5.0)
    clients = tallies.summary()["clients"]
    assert {name: clients["a"][name] for name in ("compute_seconds", "upload_wait_seconds", "round_seconds")} == {
        "compute_seconds": 6.0,
        "upload_wait_seconds": 3.0,
        "round_seconds": 11.0,
    }
    assert clients["b"]["round_seconds"] == 6.0
    assert clients["b"]["bytes_up"] == {"update": 10}


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -3.0])
def test_seconds_that_cannot_be_count_as_nothing(ledger: Ledger, nonsense: float) -> None:
    figures = tallies_over(ledger).close_round(closing(a=(nonsense, nonsense), b=(2.0, nonsense)), 3.0)
    assert (figures["compute_seconds"], figures["upload_wait_seconds"]) == (1.0, 0.0)


def test_a_wait_beyond_the_steps_leaves_no_negative_computing(ledger: Ledger) -> None:
    assert tallies_over(ledger).close_round(closing(a=(1.0, 4.0)), 5.0)["compute_seconds"] == 0.0


def test_sums_come_back_from_a_checkpoint_and_an_older_one_has_none(ledger: Ledger) -> None:
    tallies, other = tallies_over(ledger), tallies_over(ledger)
    tallies.close_round(closing(a=(5.0, 2.0)), 6.0)
    kept = tallies.state()
    tallies.close_round(closing(a=(5.0, 2.0)), 6.0)
    other.restore(kept)
    assert other.summary()["clients"]["a"]["round_seconds"] == 6.0
    other.restore(None)
    assert other.summary()["clients"]["a"]["round_seconds"] == 0.0


def test_drops_and_abandoned_attempts_are_told_long_after_their_round(ledger: Ledger) -> None:
    for number in range(3):
        reference = RoundReference(number, 0)
        ledger.round_opened(reference, {"a": "", "b": ""}, "inputs")
        ledger.member_dropped(reference, "a", "missed the round deadline")
        if number == 2:
            ledger.member_dropped(reference, "b", "departed")
            ledger.round_abandoned(reference, "no quorum")
        ledger.settled(reference, "no quorum" if number == 2 else None)
    summary = tallies_over(ledger).summary()
    assert summary["drops"] == {"departed": {"b": 1}, "missed the round deadline": {"a": 3}}
    assert summary["abandoned_attempts"] == {"no quorum": 1}
    ledger.close()


def test_what_forgotten_clients_spent_and_how_often_they_were_dropped_is_added_up(ledger: Ledger) -> None:
    table: dict[str, Any] = dict(TABLE)
    tallies = RunTallies(lambda: table, ledger)
    for name in ("a", "b"):
        ledger.member_dropped(RoundReference(0, 0), name, "left")
    tallies.close_round(closing(a=(5.0, 2.0), b=(1.0, 0.0)), 6.0)
    assert tallies.summary()["drops"] == {"left": {"a": 1, "b": 1}}
    for name in ("a", "b"):
        table[FORGOTTEN] = table.pop(name)
        tallies.close_round(closing(), 1.0)
    assert tallies.state() == {FORGOTTEN: {"compute_seconds": 4.0, "upload_wait_seconds": 2.0, "round_seconds": 12.0}}
    assert tallies.summary()["drops"] == {"left": {FORGOTTEN: 2}}
    assert tallies.summary()["clients"][FORGOTTEN]["round_seconds"] == 12.0
