"""A front that diverges: most clients meet what is not finite, fronts rest from the next round on, and the run ends with finite weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_client.training.local_training import LocalRound
from heron_client.training.runtime import Program
from heron_common.algorithm.presets import PRESETS
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.training.trainer import Trainer
from tests.harness.polling import eventually
from tests.harness.simulated import run_simulation
from tests.server.rounds.interrupted import batch_seed, send
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import WireClient, joined

Serve = Callable[..., RunningServer]

CLIENTS, ROUNDS, STEPS = 2, 5, 3
BAD_ROUND, BAD_STEP = 2, 1
SAID = "rests from now on"


def front_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for name, value in sorted(tensors.items()) if name.startswith("front.")])


def poison_programs(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    """Let an output of every client's programs be NaN from BAD_ROUND, BAD_STEP on."""
    run_step, run_program = LocalRound.run_step, Program.run

    def marked_step(self: LocalRound, local_step: int) -> None:
        for _, program in self._context.programs._loaded.values():
            program.poisoned = (self._assignment.round.round_index, local_step) >= (BAD_ROUND, BAD_STEP)  # type: ignore[attr-defined]
        run_step(self, local_step)

    def poisoned_run(self: Program, *arguments: Any) -> None:
        run_program(self, *arguments)
        if self.poisoned and hasattr(self, output):  # type: ignore[attr-defined]
            getattr(self, output)[:] = np.nan

    monkeypatch.setattr(LocalRound, "run_step", marked_step)
    monkeypatch.setattr(Program, "run", poisoned_run)


def poison_judgements(monkeypatch: pytest.MonkeyPatch, _output: str) -> None:
    """Let the server judge NaN from BAD_ROUND, BAD_STEP on."""
    judge = Trainer.judge

    def poisoned(self: Trainer, *arguments: Any) -> Any:
        judged = judge(self, *arguments)
        return judged if self.server_version < CLIENTS * (BAD_ROUND * STEPS + BAD_STEP) else np.full_like(judged, np.nan)

    monkeypatch.setattr(Trainer, "judge", poisoned)


@pytest.mark.parametrize(
    ("preset", "poison", "output"),
    [
        ("heron", poison_programs, "losses"),
        ("heron-paper", poison_programs, "losses"),
        ("heron-server-loss", poison_judgements, ""),
        ("ho-sfl", poison_programs, "inner_products"),
        ("cse-fsl", poison_programs, "losses"),
        ("fsl-sage", poison_programs, "gradients"),
        ("sflv1", poison_programs, "gradients"),
        ("sflv2", poison_programs, "gradients"),
    ],
)
def test_a_front_that_diverges_rests_and_the_run_ends_with_finite_weights(
    preset: str, poison: Any, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison(monkeypatch, output)
    with caplog.at_level(logging.ERROR, "heron_server"):
        run = run_simulation(tmp_path / "run", preset=preset, clients=CLIENTS, rounds=ROUNDS, local_steps=STEPS, batch_size=8)
    assert [record.round_index for record in caplog.records if SAID in record.getMessage()] == [BAD_ROUND], "said once"
    assert run.summary["diverged_round"] == BAD_ROUND
    assert [record["updates"] for record in run.summary["rounds"]] == [CLIENTS] * ROUNDS
    assert all(torch.isfinite(value).all() for boundary in run.boundaries for value in boundary.values())
    fronts, backs = [front_of(boundary) for boundary in run.boundaries], [boundary["back.1.weight"] for boundary in run.boundaries]
    for index in range(ROUNDS):
        assert not torch.equal(backs[index], backs[index + 1]), "the server goes on learning"
        warms_up = index < PRESETS[preset].warmup_rounds
        assert torch.equal(fronts[index], fronts[index + 1]) == (warms_up or index > BAD_ROUND), "the good steps of the bad round count"
    assert [record["local_loss"] is None for record in run.summary["rounds"]][BAD_ROUND + 1 :] == [True] * (ROUNDS - BAD_ROUND - 1)


def test_a_rate_that_is_far_too_high_ends_with_a_resting_finite_front(tmp_path: Path) -> None:
    options: dict[str, Any] = {"preset": "cse-fsl", "client_optimiser": "sgd", "client_learning_rate": 1e30}
    run = run_simulation(tmp_path / "run", rounds=2, local_steps=STEPS, batch_size=8, **options)
    assert run.summary["diverged_round"] == 0 and run.summary["rounds_completed"] == 2
    assert all(torch.isfinite(value).all() for boundary in run.boundaries for value in boundary.values())


def test_a_sensible_rate_does_not_diverge(tmp_path: Path) -> None:
    run = run_simulation(tmp_path / "run", rounds=2, local_steps=2, batch_size=8, preset="cse-fsl")
    assert run.summary["diverged_round"] is None


# ---- by what clients report --------------------------------------------------------------------------------------------------------------


def report(server: RunningServer, clients: list[WireClient], diverged: int) -> None:
    """All clients do a whole round; so many of them say that it diverged."""
    for client in clients:
        client.await_assignment(after=client.assignment.round if client.assignment.HasField("round") else None)
    index = clients[0].assignment.round.round_index
    for step in range(clients[0].assignment.plan.local_steps):
        for place, client in enumerate(clients):
            send(client, step, batch_seed(index, step, place))
    rests = clients[0].assignment.plan.estimator == pb.ESTIMATOR_NONE
    for place, client in enumerate(clients):
        statistics = pb.LocalStatistics(diverged=place < diverged)
        if rests:
            header = client.update_parts(tensors=[], total_bytes=0, statistics=statistics)[0]
            client.stub.SubmitUpdate(iter([header, pb.SubmitUpdateRequest(trailer=EMPTY)]))
        else:
            client.update(statistics=statistics)
    eventually(lambda: server.state.machine.round.round_index == index + 1, what="the round to close")


EMPTY = pb.Trailer(length_bytes=0, sha256=bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"))
"""The trailer of no bytes at all."""


def estimator_of(client: WireClient) -> int:
    client.await_assignment(after=client.assignment.round)
    return client.assignment.plan.estimator


@pytest.mark.parametrize(("count", "diverged", "rests"), [(3, 1, False), (2, 1, False), (3, 2, True), (2, 2, True), (1, 1, True)])
def test_fronts_rest_once_more_than_half_of_a_rounds_clients_diverged(serve: Serve, count: int, diverged: int, rests: bool) -> None:
    server = serve(preset="heron", update_encoding="dense", clients=count)
    clients = joined(server, *"abc"[:count])
    assert server.sample("diverged") == 0
    report(server, clients, diverged)
    assert estimator_of(clients[0]) == (pb.ESTIMATOR_NONE if rests else pb.ESTIMATOR_ZEROTH_ORDER)
    assert server.sample("diverged") == float(rests)
    assert server.sample("diverged_clients_total") == diverged
    assert server.parts.worker.diverged_round == (0 if rests else None)


def test_that_the_front_rests_survives_a_restart_and_is_said_once(
    tmp_path: Path, program_cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        "run_dir": tmp_path / "run",
        "program_cache": program_cache_dir,
        "preset": "heron",
        "update_encoding": "dense",
        "rounds": 4,
    }
    first = RunningServer(tiny_config(**options))
    try:
        (client,) = joined(first, "a")
        report(first, [client], 0)
        report(first, [client], 1)
        client.await_assignment(after=client.assignment.round)
        weights = client.blob(client.assignment.client_model.sha256)
    finally:
        first.stop()
    second = RunningServer(tiny_config(**options, resume=True))
    try:
        assert second.sample("diverged") == 1
        assert second.parts.worker.diverged_round == 1
        (client,) = joined(second, "a")
        client.await_assignment()
        assert client.assignment.plan.estimator == pb.ESTIMATOR_NONE
        assert client.blob(client.assignment.client_model.sha256) == weights
        client.assignment = pb.Assignment()
        report(second, [client], 1)
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["diverged_round"] == 1
        assert sum(SAID in record.getMessage() for record in caplog.records) == 1
    finally:
        second.stop()
