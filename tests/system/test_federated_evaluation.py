"""Held-out samples of clients: what their score is, and that it changes nothing that is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heron_cli.simulation.run
from heron_cli.simulation.clients import client_name, shares
from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_common.algorithm.algorithm import NO_WEIGHTS, LocalLosses
from heron_common.algorithm.payload_shapes import evaluation_specs
from heron_common.algorithm.presets import PRESETS
from heron_common.data.digits import DIGITS_SPECIFICATION
from heron_common.data.partition import Partition
from heron_common.data.reading import SampleReader
from heron_common.data.shard_split import split_shard
from heron_common.data.sources import DataSource, open_source
from heron_common.numerics.tensors import total_bytes
from heron_server.exports.trained_model import load_trained
from heron_server.models.registry import build_model, parse_model_options
from heron_server.models.split_model import SplitModel, load_moving_state, predict
from heron_server.training.evaluation import Score, evaluate
from tests.harness.simulated import TINY_FRONT, SimulatedRun, differing, run_simulation
from tests.harness.trained import SHORT, TrainedRuns

SEED, BATCH, FRACTION = 3, 8, 0.01
SHAPE: dict[str, Any] = {"clients": 2, "rounds": 2, "local_steps": 2, "batch_size": BATCH, "seed": SEED}
"""Of 719 and 718 digits 7 are held out: less than a batch."""


def without_held_out(source: DataSource, partition: Partition, count: int) -> list[DataSource]:
    """Return the clients' shares without the rows that a run with FRACTION holds out."""
    whole = shares(source, partition, count)
    return [part.restricted(training_rows(index, part.num_examples)) for index, part in enumerate(whole)]


def training_rows(index: int, num_examples: int) -> Any:
    return split_shard(SEED, client_name(index), num_examples=num_examples, fraction=FRACTION).training


def held_out_source() -> DataSource:
    """Return what all clients hold out."""
    source = open_source("digits:train")
    rows = []
    for index, part in enumerate(shares(source, Partition(), SHAPE["clients"])):
        rows.append(part.rows[split_shard(SEED, client_name(index), num_examples=part.num_examples, fraction=FRACTION).held_out])
    return dataclasses.replace(source, rows=np.concatenate(rows))


def model_of(tensors: dict[str, Any]) -> SplitModel:
    """Return the model that a checkpoint holds."""
    model = build_model("cnn", parse_model_options(TINY_FRONT), data=DIGITS_SPECIFICATION, seed=0)
    for part, module in (("front", model.front), ("back", model.back)):
        load_moving_state(module, {name[len(part) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{part}.")})
    return model


def figures(run: SimulatedRun, name: str) -> list[Any]:
    return [row[f"federated_{name}"] for row in run.summary["rounds"]]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_with_held_out_samples_is_the_run_without_them_and_their_score_is_the_starting_models(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = PRESETS[preset]
    within = {"blocks": "0.0"} if row.local_losses is not LocalLosses.END or row.exact_weights != NO_WEIGHTS else {}
    # A checkpoint is loaded here into a whole model, so that all of it has to be there.
    within |= {"train_weights": "all"} if row.train_weights != "all" else {}
    run = run_simulation(tmp_path / "held-out", **SHAPE, **within, preset=preset, held_out=FRACTION)
    with monkeypatch.context() as patch:
        patch.setattr(heron_cli.simulation.run, "shares", without_held_out)
        plain = run_simulation(tmp_path / "plain", **SHAPE, **within, preset=preset)
    assert [differing(*pair) for pair in zip(run.boundaries, plain.boundaries, strict=True)] == [[]] * (SHAPE["rounds"] + 1)
    for name in ("local_loss", "server_loss", "client_forward_equivalents", "test_accuracy"):
        assert [row[name] for row in run.summary["rounds"]] == [row[name] for row in plain.summary["rounds"]]
    assert figures(plain, "of_round") == [None] * 2 and figures(plain, "examples") == [0] * 2
    assert figures(run, "of_round") == [-1, 0] and figures(run, "examples") == [14] * 2
    assert figures(run, "first_version") == figures(run, "last_version")
    for index, row in enumerate(run.summary["rounds"]):
        score = evaluate(model_of(run.boundaries[index]), SampleReader(held_out_source(), DIGITS_SPECIFICATION))
        assert row["federated_accuracy"] == score.accuracy
        assert row["federated_loss"] == pytest.approx(score.loss, rel=1e-5)


def test_bytes_of_held_out_samples_are_of_a_kind_of_their_own_in_the_wires_dtype(tmp_path: Path) -> None:
    run = run_simulation(tmp_path / "run", **SHAPE, preset="heron", held_out=0.05, evaluation_batches=3, wire_dtype="int8")
    spec = model_of(run.boundaries[0]).to_spec()
    plan = PRESETS["heron"].plan
    row = 1 * (spec.cut.num_elements + 4) + 8
    assert total_bytes(evaluation_specs(plan, spec, 1)) != row, "the preset sends float32"
    for client in run.summary["clients"].values():
        assert client["bytes_up"]["evaluation"] == SHAPE["rounds"] * 3 * BATCH * row
        assert client["bytes_up"]["labels"] == SHAPE["rounds"] * SHAPE["local_steps"] * BATCH * 8
    assert figures(run, "examples") == [2 * 3 * BATCH] * 2, "at most three batches of 35 samples"


def test_under_arrival_the_summary_says_which_backs_scored(tmp_path: Path) -> None:
    run = run_simulation(tmp_path / "run", **SHAPE, preset="frozen", held_out=FRACTION, server_schedule="arrival")
    for index, (first, last) in enumerate(zip(figures(run, "first_version"), figures(run, "last_version"), strict=True)):
        assert 4 * index <= first <= last <= 4 * (index + 1)


def test_a_run_that_is_repeated_has_the_same_figures_to_the_last_bit(tmp_path: Path) -> None:
    runs = [run_simulation(tmp_path / name, **SHAPE, preset="frozen", held_out=0.05) for name in ("one", "two")]
    assert figures(runs[0], "loss") == figures(runs[1], "loss")


def test_next_tokens_are_weighed_by_tokens(runs: TrainedRuns, tmp_path: Path) -> None:
    options = {**SHORT, **runs.options("gpt2"), "held_out": 0.2, "run_dir": tmp_path / "run"}
    row = simulate(simulation_config(**options))["rounds"][1]
    trained = load_trained(tmp_path / "run", 1)
    source = open_source(options["data"])
    parts = [SampleReader(part, trained.data, trained.model.tokenizer) for part in shares(source, Partition(), 2)]
    scores = [Score(trained.model) for _ in parts]
    for index, (reader, score) in enumerate(zip(parts, scores, strict=True)):
        x, y = reader.batch(split_shard(0, client_name(index), num_examples=reader.num_examples, fraction=0.2).held_out)
        samples = torch.from_numpy(x)
        with torch.no_grad():
            z = trained.model.front.eval()(samples)
            score.add(predict(trained.model.back.eval(), z, trained.model.mask(samples)), torch.from_numpy(y))
    scores[0].include(scores[1])
    expected = scores[0].result()
    assert row["federated_examples"] == expected.num_examples >= 10
    assert row["federated_accuracy"] == expected.accuracy
    assert row["federated_perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)


def test_regressions_have_a_loss_and_no_accuracy(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((60, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "numbers.npz", x=x, y=x[:, 0, 0, :2] * 2)
    data = {"data": f"npz:{tmp_path / 'numbers.npz'}", "data_spec": "1x4x4:regression:2"}
    run = run_simulation(tmp_path / "run", **SHAPE, **data, preset="frozen", held_out=0.2)
    assert figures(run, "accuracy") == [None] * 2 and figures(run, "examples") == [12] * 2
    assert all(loss > 0 for loss in figures(run, "loss"))
