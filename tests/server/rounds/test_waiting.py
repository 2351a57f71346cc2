"""When a run that waits for clients says so."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from heron_server.rounds.waiting import FIRST_SECONDS, LONGEST_SECONDS, WaitingNote, waiting_sentence
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import WireClient

pytestmark = pytest.mark.process


def test_it_says_so_after_seconds_and_then_ever_more_seldom() -> None:
    note = WaitingNote()
    said = [second for second in range(2000) if note.is_due(True, float(second))]
    waits = [later - earlier for earlier, later in itertools.pairwise([0, *said])]
    assert waits[0] == FIRST_SECONDS
    assert all(later == min(2 * earlier, LONGEST_SECONDS) for earlier, later in itertools.pairwise(waits))
    assert waits[-1] == LONGEST_SECONDS


def test_the_sentence_says_how_many_are_missing() -> None:
    assert waiting_sentence(live=1, needed=2, expected=4) == "waiting for 3 of 4 clients (quorum 2)"
    assert waiting_sentence(live=4, needed=2, expected=4) == "waiting for the next round to open"


def test_a_round_in_between_starts_the_wait_anew() -> None:
    note = WaitingNote()
    assert not note.is_due(True, 0.0)
    assert not note.is_due(False, FIRST_SECONDS)
    assert not note.is_due(True, FIRST_SECONDS + 1)
    assert note.is_due(True, 2 * FIRST_SECONDS + 1)


def test_a_server_without_clients_says_how_many_it_needs(tmp_path: Path, program_cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = RunningServer(tiny_config(run_dir=tmp_path, program_cache=program_cache_dir, clients=10, participation=0.4, min_updates=3))
    try:
        said = []
        monkeypatch.setattr("heron_server.rounds.outbox.log.info", lambda message, extra: said.append((message, extra)))
        with WireClient(server.target) as client:
            client.join()
            for _ in range(2):
                server.advance(FIRST_SECONDS)
        # Of six live clients four tenths, rounded up, are three.
        told = "waiting for 9 of 10 clients (quorum 6)"
        assert said[1:] == [("waiting for clients", {"live": 1, "needed": 6, "expected": 10, "told": told})]
    finally:
        server.stop()
