"""A run that is really ruined, by a client's step that the options allow: it goes back by itself, goes on with shorter steps, and an audit follows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from heron_cli.audit import prove
from tests.harness.cluster import NARROWEST
from tests.harness.simulated import run_simulation
from tests.server.rounds.killed_run import unlike

WARM_UP = 8
"""Rounds in which fronts rest and the server learns."""

CHANCE = math.log(10)


OPTIONS = {
    "clients": 1,
    "rounds": 20,
    "local_steps": 10,
    "model_options": NARROWEST,
    "final_rate_fraction": 1,
    "server_learning_rate": 1e-2,
}


def ruined(run_dir: Path, **options: Any) -> tuple[list[float], list[tuple[int, int]]]:
    """Run with a warm-up and a client's step that destroys the front; return losses by round, and what the run went back from and to."""
    run = run_simulation(run_dir, warmup_rounds=WARM_UP, **OPTIONS, **options)
    losses = [record["server_loss"] for record in run.summary["rounds"]]
    returns = [(one["after_round"], one["to_round"]) for one in run.summary["returns"]]
    assert run.summary["rounds_completed"] == 20 and losses[WARM_UP - 1] < 0.5 * CHANCE
    assert returns and run.summary["step_factor"] == 0.5 ** len(returns)
    for after, to in returns:
        assert min(losses[after - 3 : after]) > 0.95 * CHANCE, "it was ruined"
        fronts = [{name: value for name, value in run.boundaries[place].items() if name.startswith("front.")} for place in (after, to)]
        assert unlike(*fronts) == [], "it is as it was at its best"
    return losses, returns


@pytest.mark.slow
def test_a_front_that_its_steps_destroy_comes_back_and_learns_on(tmp_path: Path) -> None:
    losses, returns = ruined(tmp_path, preset="cse-fsl", client_optimiser="sgd", client_learning_rate=30)
    assert max(losses[returns[-1][0] :]) < 0.5 * CHANCE and losses[-1] < losses[WARM_UP - 1]


@pytest.mark.slow
def test_an_audit_follows_a_run_that_went_back_by_itself(tmp_path: Path) -> None:
    """Zeroth-order steps thirty times as long as the preset's, proved from the coefficients that the client sent."""
    log = {"update_encoding": "log", "distribution": "rademacher"}
    _, returns = ruined(tmp_path, preset="heron-paper", client_learning_rate=1, **log)
    assert [(one.round_index + 1, one.returned_to) for one in prove(tmp_path) if one.returned_to is not None] == returns
