"""When a run that waits for clients says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from heron_server.rounds.waiting import AGAIN_SECONDS, FIRST_SECONDS, WaitingNote
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import WireClient

pytestmark = pytest.mark.process


def test_it_says_so_after_a_while_and_then_once_in_a_while() -> None:
    note = WaitingNote()
    said = [second for second in range(1000) if note.is_due(True, float(second))]
    assert said == [FIRST_SECONDS + n * AGAIN_SECONDS for n in range(4)]


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
        assert said[1:] == [("waiting for clients", {"live": 1, "needed": 6, "expected": 10})]
    finally:
        server.stop()
