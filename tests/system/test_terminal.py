"""Server and clients started by hand, on terminals: they run to the end, and what stays on the screens is true."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.cluster import NARROW, words_of
from tests.harness.polling import eventually
from tests.harness.terminal import Terminal


def run_on_terminals(directory: Path, rounds: int, log_level: str = "info") -> list[str]:
    """Run a server and two clients, each on a terminal that is resized on the way; return their last screens once all have ended with 0."""
    run_dir = directory / "run"
    common = {"log_level": log_level}
    server_words = words_of(
        {
            **common,
            "run_dir": run_dir,
            "listen": "127.0.0.1:0",
            "metrics_port": 0,
            "data_spec": "digits",
            "model_options": NARROW,
            "clients": 2,
            "rounds": rounds,
            "eval_data": "digits:test",
            "local_steps": 2,
        }
    )
    with ExitStack() as stack:
        terminals = [stack.enter_context(Terminal([sys.executable, "-m", "heron_server", *server_words]))]
        listening = run_dir / "server.json"
        eventually(lambda: listening.exists() or terminals[0].exit_code is not None, 120, "the server's address")
        address = json.loads(listening.read_text())["address"]
        for index in range(2):
            words = words_of(
                {
                    **common,
                    "server": address,
                    "data": "digits:train",
                    "shard": f"{index}/2",
                    "name": f"hand-{index}",
                    "state_dir": directory / "state" / str(index),
                }
            )
            terminals.append(stack.enter_context(Terminal([sys.executable, "-m", "heron_client", *words])))
        eventually(lambda: "2 live" in terminals[0].screen(), 60, "both clients on the server's screen")
        for terminal in terminals:
            terminal.resize(60, 20)
        try:
            eventually(lambda: all(t.exit_code is not None for t in terminals), 60 + 4 * rounds, "the end of everybody")
        except AssertionError as exc:
            raise AssertionError(f"{exc}: " + "\n---\n".join(t.screen() for t in terminals)) from None
        screens = [t.last_screen() for t in terminals]
        said = terminals[0].everything()
        assert "loading ..." in said and f"stopped after {rounds} of {rounds} rounds" in said and f"{rounds} of {rounds}, finished" in said
        assert [t.exit_code for t in terminals] == [0, 0, 0], "\n---\n".join(screens)
        assert all("the run is finished" in terminal.everything() for terminal in terminals[1:])
    return screens


def check_screens(screens: list[str], rounds: int) -> None:
    # A terminal breaks lines where it ends, within words too.
    server, *clients = ("".join(screen.split()) for screen in screens)
    # The last lines are what one would want next.
    for said in ("test accuracy", "the model is", f"{rounds} of {rounds} rounds in", "the best was"):
        assert "".join(said.split()) in server, said
    for command in ("heron report --run-dir", "heron evaluate --run-dir", "heron export --run-dir"):
        assert "".join(command.split()) in server
    for screen in clients:
        assert "statusleft" in screen


def test_a_run_on_terminals_ends(tmp_path: Path) -> None:
    check_screens(run_on_terminals(tmp_path, rounds=10), rounds=10)


@pytest.mark.slow
@pytest.mark.parametrize("log_level", ["info", "debug"])
def test_a_long_run_on_terminals_ends_at_every_log_level(tmp_path: Path, log_level: str) -> None:
    check_screens(run_on_terminals(tmp_path, rounds=40, log_level=log_level), rounds=40)
