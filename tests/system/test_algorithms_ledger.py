"""What a run sent, by its own ledger, against the closed forms of `plan_counts` and against counts written out here."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from heron_cli.simulation.configuration import simulation_config
from heron_common.algorithm.algorithm import Algorithm, LocalLosses
from heron_common.algorithm.plan import HeadTraining, Objective, Plan, UpdateEncoding
from heron_common.algorithm.plan_counts import forward_equivalents, round_bytes
from heron_common.algorithm.presets import PRESETS
from heron_common.data.digits import DIGITS_SPECIFICATION
from heron_server.models.families.local_losses import with_block_heads
from heron_server.models.registry import build_model, parse_model_options
from heron_server.models.split_model import SplitModel
from heron_server.models.train_weights import with_train_weights
from heron_server.programs.publish import complete_algorithm
from tests.harness.cluster import Cluster, wait_for_exit
from tests.harness.simulated import TINY_FRONT, run_simulation

CLIENTS, ROUNDS, STEPS, BATCH = 2, 3, 4, 8
FLOAT, COEFFICIENT, LABEL = 4, 8, 8
"""Bytes of a weight or activation, of a log's coefficient, of a label."""

NOT_COUNTED = {"control", "losses", "program", "base"}
"""Their sizes are the encoding's or the model's, not the plan's."""

SHAPE: dict[str, Any] = {"clients": CLIENTS, "rounds": ROUNDS, "local_steps": STEPS, "batch_size": BATCH}

WITHIN = "0.0"
"""Where the tiny front's one block can be parted."""

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in PRESETS},
    **{name: {"preset": name, "blocks": WITHIN} for name in ("blockwise", "pairs", "last-exact")},
    "hybrid": {"preset": "hybrid", "blocks": WITHIN, "train_weights": "all"},
    "heron, dense": {"preset": "heron", "update_encoding": "dense"},
    "heron, every other step": {"preset": "heron", "upload_interval": 2},
    "heron, int8": {"preset": "heron", "wire_dtype": "int8"},
    "heron, head by the client": {"preset": "heron", "head_training": "client", "update_encoding": "log"},
    "heron-server-loss, central": {"preset": "heron-server-loss", "difference": "central", "num_directions": 2},
    "ho-sfl, int8": {"preset": "ho-sfl", "wire_dtype": "int8"},
    "sflv2, float16": {"preset": "sflv2", "wire_dtype": "float16"},
    "cse-fsl, every third step": {"preset": "cse-fsl", "upload_interval": 3},
}


def tiny_model(algorithm: Algorithm = PRESETS["heron"]) -> SplitModel:
    model = build_model("cnn", parse_model_options(TINY_FRONT), data=DIGITS_SPECIFICATION, seed=0)
    model = with_train_weights(model, algorithm.train_weights, exact=algorithm.exact_weights, blocks=(WITHIN,))
    losses = algorithm.local_losses
    return with_block_heads(model, losses, blocks=(WITHIN,) if losses is not LocalLosses.END else (), seed=0)


def algorithm_of(summary: dict[str, Any], **options: Any) -> Algorithm:
    """Return the completed algorithm that a run of these options has; the summary must say the same."""
    config = simulation_config(**SHAPE, **options)
    completed, _ = complete_algorithm(config.algorithm, tiny_model(config.algorithm))
    assert summary["algorithm"]["plan"]["update_encoding"] == completed.plan.update_encoding
    return completed


def plans_of(algorithm: Algorithm) -> list[Plan]:
    return [algorithm.plan_for_round(index, ROUNDS) for index in range(ROUNDS)]


def counted_by_hand(algorithm: Algorithm) -> dict[str, Counter[str]]:
    """Return one client's bytes, written down as a walk over its steps instead of a formula over its plan."""
    model = tiny_model(algorithm)
    front, head = (sum(p.numel() for p in part.parameters() if p.requires_grad) for part in (model.front, model.auxiliary_head))
    sample = math.prod(model.to_spec().cut.shape)
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()
    for index in range(ROUNDS):
        plan, rests = algorithm.plan, index < algorithm.warmup_rounds or algorithm.plan.estimator == "none"
        row = {"float32": FLOAT * sample, "float16": FLOAT // 2 * sample, "int8": sample + FLOAT}[plan.wire_dtype]
        local = plan.objective is Objective.AUXILIARY and not rests
        down["weights"] += FLOAT * (front + (head if local else 0))
        for step in range(STEPS):
            probes = 0
            if plan.objective is Objective.SERVER and not rests:
                probes = plan.num_directions * (2 if plan.difference == "central" else 1)
            if probes or step % plan.upload_interval == 0:
                up["activations"] += BATCH * (1 + probes) * row
                up["labels"] += BATCH * LABEL
                down["cut_gradient"] += BATCH * row if plan.objective is Objective.CUT_GRADIENT and not rests else 0
            if not rests and plan.update_encoding is UpdateEncoding.LOG:
                up["update"] += COEFFICIENT * plan.direction_groups * plan.num_directions
        if not rests and plan.update_encoding is UpdateEncoding.DENSE:
            up["update"] += FLOAT * (front + (head if plan.head_training is HeadTraining.CLIENT else 0))
    return {"up": +up, "down": +down}


def summed_over_rounds(algorithm: Algorithm) -> dict[str, Counter[str]]:
    total: dict[str, Counter[str]] = {"up": Counter(), "down": Counter()}
    for plan in plans_of(algorithm):
        for direction, kinds in round_bytes(plan, tiny_model(algorithm).to_spec()).items():
            total[direction].update(kinds)
    return total


def ledger(row: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return a client's counted bytes by direction and kind, without what no plan determines."""
    return {way: {kind: n for kind, n in row[f"bytes_{way}"].items() if kind not in NOT_COUNTED} for way in ("up", "down")}


@pytest.mark.invariant(17, "of a run's ledger")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ledger_of_a_run_is_the_closed_form(variant: str, tmp_path: Path) -> None:
    options = VARIANTS[variant]
    run = run_simulation(tmp_path / "run", **SHAPE, **options)
    algorithm = algorithm_of(run.summary, **options)
    assert run.summary["rounds_completed"] == ROUNDS and run.summary["diverged_round"] is None
    assert len(run.summary["clients"]) == CLIENTS
    for row in run.summary["clients"].values():
        assert ledger(row) == summed_over_rounds(algorithm) == counted_by_hand(algorithm)
        assert "cut_gradient" not in row["bytes_down"] or algorithm.plan.objective is Objective.CUT_GRADIENT
    for plan, record in zip(plans_of(algorithm), run.summary["rounds"], strict=True):
        assert record["client_forward_equivalents"] == CLIENTS * forward_equivalents(plan)


@pytest.mark.invariant(17, "of a run's ledger")
@pytest.mark.parametrize(("difference", "num_directions", "copies"), [("forward", 1, 2), ("forward", 3, 4), ("central", 2, 5)])
def test_judged_probes_cost_a_copy_of_the_activations_each(difference: str, num_directions: int, copies: int, tmp_path: Path) -> None:
    """M1: up (P + 1) z a step, P = 1 for a forward difference; a warm-up round would send one copy, so there is none here."""
    options = {"preset": "heron-server-loss", "difference": difference, "num_directions": num_directions, "warmup_rounds": 0}
    run = run_simulation(tmp_path / "run", **{**SHAPE, "rounds": 1}, **options)
    one_copy = STEPS * BATCH * math.prod(tiny_model().to_spec().cut.shape) * FLOAT
    for row in run.summary["clients"].values():
        assert row["bytes_up"]["activations"] == copies * one_copy
        assert "cut_gradient" not in row["bytes_down"]
        assert row["bytes_down"]["losses"] >= STEPS * BATCH * copies * FLOAT, "the loss of every sample and copy comes back"


@pytest.mark.invariant(16)
def test_an_upload_every_step_is_a_server_step_every_step(tmp_path: Path) -> None:
    """CSE-FSL with k = 1 (DSL-Aux): as many server steps as client steps; with k = 3 only every third."""
    for interval, uploads in ((1, STEPS), (3, math.ceil(STEPS / 3))):
        options = {"preset": "cse-fsl", "upload_interval": interval, "server_optimiser": "adam"}
        run = run_simulation(tmp_path / str(interval), **SHAPE, **options)
        assert run.boundaries[-1]["optimiser.back.0.step"] == torch.tensor(float(CLIENTS * ROUNDS * uploads))


@pytest.mark.invariant(17, "of a run's ledger")
def test_the_ledger_of_processes_over_a_network_is_the_closed_form(cluster: Cluster) -> None:
    options = {"preset": "ho-sfl", "wire_dtype": "int8", "server_schedule": "lockstep"}
    server = cluster.server(**SHAPE, **options, model_options=TINY_FRONT)
    assert [wait_for_exit(process) for process in [*cluster.clients(CLIENTS), server]] == [0, 0, 0]
    summary = cluster.summary()
    algorithm = algorithm_of(summary, **options)
    for row in summary["clients"].values():
        assert ledger(row) == summed_over_rounds(algorithm) == counted_by_hand(algorithm)
