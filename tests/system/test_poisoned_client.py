"""Whole runs with one poisoned client: it is rejected and counted by reason, set apart and left out, and the honest ones never are."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_cli.simulation import run as simulation
from heron_cli.simulation.clients import client_name
from heron_client.training import passes
from heron_common.data.rows import RowReader
from heron_common.data.sources import DataSource
from heron_common.numerics.tensors import Int64Array
from heron_common.numerics.wire_dtypes import encode_rows
from tests.harness.simulated import TINY_FRONT, differing, run_simulation

POISONED = client_name(0)
OPTIONS: dict[str, Any] = {
    "preset": "frozen",
    "clients": 4,
    "rounds": 8,
    "local_steps": 8,
    "upload_interval": 1,
    "batch_size": 32,
    "partition": "dirichlet:0.3",
    "model_options": TINY_FRONT,
    "gates": True,
    "gate_warmup_uploads": 32,
    "quarantine_rounds": 2,
}


@pytest.fixture
def scaled_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first client sends its activations fifty times as large as they are."""

    def scaled(rows: Any, *others: Any, **named: Any) -> Any:
        return encode_rows(rows * np.float32(50 if threading.current_thread().name == POISONED else 1), *others, **named)

    monkeypatch.setattr(passes, "encode_rows", scaled)


class RandomLabels:
    """Labels that say nothing about the samples."""

    def __init__(self, real: RowReader) -> None:
        self.shape = real.shape

    def read(self, rows: Int64Array) -> Any:
        return np.random.default_rng(int(rows[0])).integers(0, 10, len(rows))


@pytest.fixture
def random_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first client's labels are drawn at random."""
    real = simulation.shares

    def shares(*arguments: Any) -> list[DataSource]:
        first, *others = real(*arguments)
        return [dataclasses.replace(first, labels=RandomLabels(first.labels)), *others]

    monkeypatch.setattr(simulation, "shares", shares)


def recorded(run_dir: Path) -> tuple[tuple[int, ...], list[tuple[str, str]], list[str]]:
    """Return what the ledger says: uploads accepted, trained and rejected; who was rejected why; who was set apart."""
    with sqlite3.connect(run_dir / "ledger.sqlite") as ledger:
        counts = ledger.execute("SELECT sum(accepted), sum(trained), sum(rejected) FROM attempts").fetchone()
        why = ledger.execute("SELECT client_id, reason FROM rejections").fetchall()
        return counts, why, [name for (name,) in ledger.execute("SELECT client_id FROM quarantines")]


def test_honest_clients_are_never_rejected_and_gates_that_refuse_nothing_change_nothing(tmp_path: Path) -> None:
    options = {**OPTIONS, "gradient_factor": 0}
    gated = run_simulation(tmp_path / "gated", **options)
    plain = run_simulation(tmp_path / "plain", **{**options, "gates": None})
    assert gated.summary["rejected_uploads"] == {} and plain.summary["rejected_uploads"] is None
    assert [differing(one, other) for one, other in zip(gated.boundaries, plain.boundaries, strict=True)] == [[]] * 9


@pytest.mark.usefixtures("scaled_activations")
def test_a_client_that_scales_its_activations_is_rejected_set_apart_and_left_out(tmp_path: Path) -> None:
    run = run_simulation(tmp_path / "run", **OPTIONS)
    (name, reasons), *others = run.summary["rejected_uploads"].items()
    # What was acknowledged when it was set apart waits no longer for a judgement of its own.
    assert (name, others) == (POISONED, []) and set(reasons) <= {"activation_norm", "quarantined"}
    counts, why, apart = recorded(tmp_path / "run")
    assert counts[0] == counts[1] + counts[2] and counts[2] == sum(reasons.values()) == len(why)
    assert Counter(why) == {(POISONED, reason): count for reason, count in reasons.items()} and apart == [POISONED]
    # Set apart within a round, it is dropped there; the rounds after that go without it.
    assert 3 in [row["cohort"] for row in run.summary["rounds"]] and all(row["updates"] >= 3 for row in run.summary["rounds"])


@pytest.mark.usefixtures("random_labels")
def test_a_client_that_sends_random_labels_is_rejected_once_the_others_are_learnt(tmp_path: Path) -> None:
    run = run_simulation(tmp_path / "run", **{**OPTIONS, "rounds": 16})
    assert set(run.summary["rejected_uploads"]) == {POISONED}
    assert "server_loss" in run.summary["rejected_uploads"][POISONED]


@pytest.mark.usefixtures("scaled_activations")
def test_a_client_that_waits_for_what_only_training_answers_sits_the_round_out(tmp_path: Path) -> None:
    run = run_simulation(tmp_path / "run", **{**OPTIONS, "preset": "sflv2", "rounds": 4, "quarantine_after": 0})
    assert set(run.summary["rejected_uploads"]) == {POISONED}
    assert [row["updates"] for row in run.summary["rounds"]][-1] == 3


@pytest.mark.usefixtures("scaled_activations")
def test_a_resumed_run_judges_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole = run_simulation(tmp_path / "whole", **OPTIONS)
    run_simulation(tmp_path / "parts", **{**OPTIONS, "rounds": 3})
    parts = run_simulation(tmp_path / "parts", **OPTIONS, resume=True)
    # How many more uploads were on their way when it was set apart is the network's affair.
    refused = [run.summary["rejected_uploads"][POISONED]["activation_norm"] for run in (parts, whole)]
    assert refused[0] == refused[1] > 0
    assert differing(whole.boundaries[-1], parts.boundaries[-1]) == []
