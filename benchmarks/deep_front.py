"""Fronts that lose much when frozen: forward passes, local losses and exact gradients; writes docs/results/deep-front.md. Run by `make bench-deep`.

Every row at equal steps beside `frozen` and `cse-fsl`; differences are of runs with the same seed. Cells are written as they end and skipped the next time.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heron_common.files.atomic import write_json_atomically
from heron_common.process.quiet_libraries import quiet_libraries

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
LAST_ROUNDS = 3
"""A run's score is the mean over so many last rounds: one round's score jumps by half a point."""

BATCH_SIZE = 64


@dataclass(frozen=True)
class Task:
    """Data, front and length of the runs that are compared."""

    name: str
    says: str
    options: dict[str, Any]


TASKS = (
    Task(
        "digits-deep",
        "scikit-learn's digits, 4 clients, 50 rounds of 10 steps; 14,790 weights, 32 floats a sample at the cut",
        {
            "data": "digits",
            "eval_data": "digits:test",
            "clients": 4,
            "rounds": 50,
            "local_steps": 10,
            "model_options": "front_widths=16,32,32,2 front_strides=1,2,1,1",
        },
    ),
    Task(
        "deep-narrow",
        "Fashion-MNIST, 5 clients, 60 rounds of 20 steps; 15,372 weights, 64 floats a sample at the cut",
        {
            "data": "fashion-mnist",
            "clients": 5,
            "rounds": 60,
            "local_steps": 20,
            "model_options": "front_widths=16,32,32,4 front_strides=2,2,2,1 back_widths=32",
        },
    ),
)


@dataclass(frozen=True)
class Trial:
    """A row: its options, and the passes of a sample through the front in a step, a backward pass counting as two."""

    name: str
    passes: str
    options: dict[str, Any] = field(default_factory=dict)


TRIALS = (
    Trial("cse-fsl (exact gradients)", "3", {"preset": "cse-fsl"}),
    Trial("frozen", "1", {"preset": "frozen"}),
    Trial("heron (default)", "2"),
    Trial("heron, norms only", "2", {"train_weights": "norms"}),
    Trial("heron, norms and last layer", "2", {"train_weights": "norms+last"}),
    Trial("heron, half the step", "2", {"relative_step": 0.05}),
    Trial("blockwise (exact local losses)", "3 at most", {"preset": "blockwise"}),
    Trial("pairs (of blocks)", "3 at most", {"preset": "pairs"}),
    Trial("cse-fsl, last layer only", "1 and little", {"preset": "cse-fsl", "train_weights": "last"}),
    Trial("last-exact (the last block's exact gradients)", "1 and little", {"preset": "last-exact"}),
    Trial("hybrid (that, and differences for the other norms)", "2 and little", {"preset": "hybrid"}),
    Trial("hybrid, differences for all other weights", "2 and little", {"preset": "hybrid", "train_weights": "all"}),
)

EXACT, FROZEN = TRIALS[0].name, TRIALS[1].name

Scores = dict[str, dict[str, dict[str, float]]]
"""By task, trial and seed."""


def run_cell(task: int, trial: int, *, seed: int) -> float:
    """Return the mean test accuracy of a run's last rounds."""
    from heron_cli.simulation.configuration import simulation_config
    from heron_cli.simulation.run import simulate

    options = {"preset": "heron", "batch_size": BATCH_SIZE, "seed": seed, **TASKS[task].options, **TRIALS[trial].options}
    rounds = simulate(simulation_config(**options))["rounds"]
    return statistics.fmean(row["test_accuracy"] for row in rounds[-LAST_ROUNDS:])


def main() -> int:
    """Run what is missing, two at a time, seed by seed, and write the tables."""
    quiet_libraries()
    path = ROOT / "docs" / "results" / "deep-front.json"
    scores: Scores = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    cells = [(task, trial, seed) for seed in SEEDS for task in range(len(TASKS)) for trial in range(len(TRIALS))]
    missing = [(i, j, seed) for i, j, seed in cells if str(seed) not in scores.get(TASKS[i].name, {}).get(TRIALS[j].name, {})]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=quiet_libraries) as pool:
        futures = {} if "--report-only" in sys.argv else {pool.submit(run_cell, i, j, seed=seed): (i, j, seed) for i, j, seed in missing}
        for future in as_completed(futures):
            i, j, seed = futures[future]
            of_trial = scores.setdefault(TASKS[i].name, {}).setdefault(TRIALS[j].name, {})
            of_trial[str(seed)] = round(future.result(), 4)
            write_json_atomically(path, scores)
            print(f"{TASKS[i].name}, {TRIALS[j].name}, seed {seed}: {of_trial[str(seed)]:.2%}", flush=True)
    path.with_suffix(".md").write_text("\n".join(_report(scores)) + "\n", encoding="utf-8")
    return 0


def _report(scores: Scores) -> list[str]:
    lines = [
        "# Fronts that lose much when frozen",
        "",
        f"Written by `make bench-deep`: IID, batch {BATCH_SIZE}, default options but those that a row names. Test accuracy in per cent, mean of the last",
        f"{LAST_ROUNDS} rounds. Differences are means over the seeds of a row, each against the run of the same seed, ± their standard deviation.",
        "`blockwise` and `pairs` are exact local learning, not zeroth order: a loss behind every block or every second one, and no gradient crosses them.",
    ]
    for task in TASKS:
        found = scores.get(task.name, {})
        if EXACT not in found or FROZEN not in found:
            continue
        lines += ["", f"## {task.name}", "", f"{task.says}.", ""]
        lines += ["| what | passes | seeds | accuracy | against frozen | of the gap |", "|---|---|---|---|---|---|"]
        lines += [_row(trial, found) for trial in TRIALS if trial.name in found]
    return lines


def _row(trial: Trial, found: dict[str, dict[str, float]]) -> str:
    own = found[trial.name]
    paired = [100 * (score - found[FROZEN][seed]) for seed, score in own.items() if seed in found[FROZEN]]
    gaps = [100 * (found[EXACT][seed] - found[FROZEN][seed]) for seed in own if seed in found[FROZEN] and seed in found[EXACT]]
    spread = f" ± {statistics.stdev(paired):.2f}" if len(paired) > 1 else ""
    closed = f"{statistics.fmean(paired) / statistics.fmean(gaps):.0%}" if gaps and trial.name != FROZEN else ""
    accuracy = 100 * statistics.fmean(own.values())
    return f"| {trial.name} | {trial.passes} | {len(own)} | {accuracy:.2f} | {statistics.fmean(paired):+.2f}{spread} | {closed} |"


if __name__ == "__main__":
    sys.exit(main())
