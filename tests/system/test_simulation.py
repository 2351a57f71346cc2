"""Simulated runs: the weights of the networked run bit for bit, the same every time, many clients, and the command as its user sees it."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from heron_cli.simulate import run_simulate
from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.plots import WITHOUT_MATPLOTLIB
from heron_cli.simulation.run import SimulationError, simulate
from heron_client.training.local_training import LocalRound
from heron_common.errors import ConfigurationError, DataError, StorageError
from heron_server.training.trainer import Trainer
from tests.harness.cluster import NARROW, Cluster, wait_for_exit
from tests.harness.polling import eventually

SHORT = {"data": "digits", "clients": 3, "rounds": 2, "model_options": NARROW, "local_steps": 4}


def run(directory: Path, **options: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Simulate and return the summary and the final tensors."""
    summary = simulate(simulation_config(**{**SHORT, **options}, run_dir=directory))
    return summary, load_file(summary["checkpoint"])


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.slow
def test_a_preset_of_ones_own_keeps_its_name_and_is_resumed(tmp_path: Path) -> None:
    options = {**SHORT, "preset": "mine", "presets": {"mine": {"base": "frozen", "batch_size": 8}}, "rounds": 1, "run_dir": tmp_path}
    first = simulate(simulation_config(**options))
    assert (first["preset"], first["algorithm"]["plan"]["preset"], first["algorithm"]["plan"]["batch_size"]) == ("mine", "mine", 8)
    assert simulate(simulation_config(**{**options, "rounds": 2, "resume": True}))["rounds_completed"] == 2


def without_timing(tally: dict[str, int]) -> dict[str, int]:
    """How often a client asks for work, and which answer brings which loss, is a matter of time; frozen weights are not sent within a process."""
    return {kind: size for kind, size in tally.items() if kind not in ("control", "losses", "base")}


@pytest.mark.parametrize(
    ("preset", "options"),
    [("heron", {"participation": 0.6}), *(pytest.param(name, {}, marks=pytest.mark.slow) for name in ("heron-server-loss", "hybrid"))],
)
def test_a_simulation_ends_with_the_weights_and_the_ledger_of_the_networked_run(
    preset: str, options: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    shared = {"preset": preset, "rounds": 3, "seed": 5, **options}
    server = cluster.server(**{**shared, "clients": 3, "local_steps": 4}, server_schedule="lockstep")
    clients = cluster.clients(3, partition="dirichlet:0.5")
    assert [wait_for_exit(process) for process in [*clients, server]] == [0, 0, 0, 0]
    summary, tensors = run(tmp_path / "simulated", partition="dirichlet:0.5", **shared)
    assert differing(cluster.final_tensors(), tensors) == []
    networked = cluster.summary()
    figures = ("cohort", "updates", "test_accuracy", "test_loss", "local_loss", "server_loss", "client_forward_passes")
    assert [[row[f] for f in figures] for row in summary["rounds"]] == [[row[f] for f in figures] for row in networked["rounds"]]
    for name, row in networked["clients"].items():
        mine = summary["clients"][name]
        assert mine["examples"] == row["examples"] and mine["rounds_completed"] == row["rounds_completed"]
        assert without_timing(mine["bytes_up"]) == without_timing(row["bytes_up"])
        assert without_timing(mine["bytes_down"]) == without_timing(row["bytes_down"])
        assert mine["peak_memory_bytes"] is None and row["peak_memory_bytes"] > 0


def test_fifty_clients_of_whom_ten_take_part_give_the_same_weights_twice_and_others_with_another_seed(tmp_path: Path) -> None:
    many = {"clients": 50, "participation": 0.2, "partition": "dirichlet:0.3"}
    summary, first = run(tmp_path / "first", **many)
    _, second = run(tmp_path / "second", **many)
    _, other = run(tmp_path / "other", **many, rounds=1, seed=1)
    assert differing(first, second) == []
    assert differing(first, other) != []
    assert [row["cohort"] for row in summary["rounds"]] == [10, 10]
    assert len(summary["clients"]) == 50
    assert sum(client["rounds_completed"] for client in summary["clients"].values()) == 20
    assert sum(client["examples"] for client in summary["clients"].values()) == 1437
    assert summary["simulation"]["participation"] == 0.2 and summary["simulation"]["partition"] == "dirichlet:0.3"


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    before, _ = run(tmp_path / "run", rounds=1)
    after, _ = run(tmp_path / "run", rounds=2, resume=True)
    assert after["run_id"] == before["run_id"]
    assert [row["round_index"] for row in after["rounds"]] == [0, 1] and after["rounds"][0] == before["rounds"][0]


def test_a_simulation_that_is_resumed_with_fewer_clients_waits_for_nobody_else(tmp_path: Path) -> None:
    stop = threading.Event()
    simulate(simulation_config(**{**SHORT, "rounds": 500, "run_dir": tmp_path}), stop, lambda _: stop.set())
    before = json.loads((tmp_path / "summary.json").read_text())["rounds_completed"]
    after, _ = run(tmp_path, rounds=before + 2, clients=2, resume=True)
    assert after["rounds"][-1]["cohort"] == 2


def test_progress_is_told_round_by_round_and_an_early_stop_keeps_what_was_done() -> None:
    stop, told = threading.Event(), list[int]()

    def on_round(record: Any) -> None:
        told.append(record.round_index)
        if len(told) == 2:
            stop.set()

    summary = simulate(simulation_config(**{**SHORT, "rounds": 500}), stop, on_round)
    assert told == list(range(len(told)))
    assert 2 <= len(told) == summary["rounds_completed"] < 500
    assert summary["simulation"]["interrupted"] is True
    assert summary["checkpoint"] is None, "without --run-dir its files are gone"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("client-")]


def test_a_failing_client_ends_the_simulation_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: LocalRound, local_step: int) -> None:
        raise DataError("sample 7 is damaged: repair it")

    monkeypatch.setattr(LocalRound, "run_step", fail)
    with pytest.raises(DataError, match=r"client-\d ended the simulation: sample 7 is damaged: repair it"):
        simulate(simulation_config(**SHORT, summary=tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text())["simulation"]["interrupted"] is True


def test_a_failing_trainer_ends_the_simulation_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.raises(SimulationError, match="the trainer died"):
        simulate(simulation_config(**SHORT))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"data": "nothing"}, ConfigurationError, "unknown data source 'nothing'"),
        ({"clients": 2000}, DataError, "at most 1437"),
        ({"partition": "fair"}, ConfigurationError, "--partition: a partition is written iid, .* not 'fair'$"),
        ({"participation": 1.5}, ConfigurationError, "--participation"),
        ({"participation": 0.1, "min_updates": 2}, ConfigurationError, "--min-updates 2 exceeds the 1 that --participation"),
        ({"plot": "curve.txt"}, ConfigurationError, "--plot: .*'curve.txt'"),
        ({"resume": True}, ConfigurationError, "--run-dir"),
        ({"summary": "/proc/nowhere/out.json"}, StorageError, "cannot write /proc/nowhere/out.json"),
        ({"eval_data": "npz:missing.npz"}, DataError, "missing.npz"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_a_sentence(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        simulate(simulation_config(**{**SHORT, **options}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "source", "specification", "evaluation"),
    [
        ("digits", "digits:train", "digits", "digits:test"),
        ("fashion-mnist", "fashion-mnist:train", "fashion-mnist", "fashion-mnist:test"),
        ("cifar-10:train:folder", "cifar-10:train:folder", "cifar-10", "cifar-10:test:folder"),
        ("idx:folder:train", "idx:folder:train", "digits", "idx:folder:test"),
        ("npz:some.npz", "npz:some.npz", "digits", None),
    ],
)
def test_the_name_of_the_data_says_what_they_look_like_and_what_is_held_out(
    data: str, source: str, specification: str, evaluation: str | None
) -> None:
    config = simulation_config(data=data)
    assert (config.training_source, config.run.data_spec, config.run.eval_data) == (source, specification, evaluation)
    given = simulation_config(data=data, data_spec="1x2x2:3", eval_data="npz:mine.npz", server_schedule="arrival", liveness_seconds=5)
    assert (given.run.data_spec, given.run.eval_data, given.rounds.liveness_seconds) == ("1x2x2:3", "npz:mine.npz", 5)
    assert given.plan.server_schedule != config.plan.server_schedule == "lockstep"


def _command(directory: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "heron_cli", "simulate", "--model-options", NARROW, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory)


def test_the_command_shows_rounds_and_a_table_and_leaves_summary_and_plot(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.json"
    process = _command(tmp_path, "--data", "digits", "--clients", "4", "--participation", "0.5", "--rounds", "2", "--summary", str(out))
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    summary = json.loads(out.read_text())
    assert f"{summary['rounds'][-1]['test_accuracy']:.2%}" in text
    assert "round 2/2" in text and "4 clients, 2 of them in each round" in text and "seconds a round" in text
    assert summary["preset"] == "heron" and summary["simulation"]["clients"] == 4 and summary["simulation"]["data"] == "digits:train"
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    # Nobody named a directory: the run has one of its own, and the commands for it are on the screen.
    (kept,) = (tmp_path / "heron-runs").glob("simulation-*")
    assert (kept / "checkpoints").is_dir() and f"heron export --run-dir heron-runs/{kept.name}" in text


def test_a_signal_ends_the_command_well_with_what_was_done(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    process = _command(tmp_path, "--rounds", "5000", "--summary", str(out))
    eventually(lambda: out.exists() and json.loads(out.read_text())["rounds_completed"] >= 1, 60, "a round")
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    summary = json.loads(out.read_text())
    assert f"stopped after {summary['rounds_completed']} of 5000 rounds" in text
    assert len(summary["rounds"]) == summary["rounds_completed"] >= 1


def test_without_matplotlib_a_sentence_stands_for_the_plot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["--data", "digits", "--clients", "2", "--rounds", "1", "--local-steps", "2", "--model-options", NARROW]
    assert run_simulate(argparse.Namespace(words=[*words, "--summary", str(tmp_path / "out.json")])) == 0
    assert WITHOUT_MATPLOTLIB in capsys.readouterr().out
    assert (tmp_path / "out.json").exists() and not (tmp_path / "out.png").exists()


def test_a_plot_of_a_run_without_scores_or_rounds_is_drawn_all_the_same(tmp_path: Path) -> None:
    from heron_cli.simulation.plots import draw_rounds

    row = {"round_index": 0, "test_accuracy": None, "test_loss": None, "server_loss": 1.0, "local_loss": None}
    for rounds in ([], [row], [row, {**row, "round_index": 1, "server_loss": None}]):
        draw_rounds({"preset": "frozen", "rounds": rounds}, tmp_path / f"{len(rounds)}.svg")
        assert (tmp_path / f"{len(rounds)}.svg").stat().st_size > 1000
