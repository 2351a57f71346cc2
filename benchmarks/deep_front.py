"""What was tried to train a deep front by forward passes alone; writes docs/results/deep-front.md. Run by `make bench-deep`.

One factor at a time from the default of `heron`, at equal steps, one seed, beside `frozen` and exact gradients (`cse-fsl`).
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from accuracy_cells import BATCH_SIZE, CLIENTS, DATA, FRONTS, LAST_ROUNDS, LOCAL_STEPS

from heron_common.files.atomic import write_json_atomically
from heron_common.process.quiet_libraries import quiet_libraries

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1)
ROUNDS = 16
"""Of every row: with fewer, exact gradients have not yet paid for the unrest that a moving front causes the server."""


@dataclass(frozen=True)
class Trial:
    """A row: what is changed, its options, and its passes a sample."""

    name: str
    options: dict[str, Any]
    passes: int = 2


TRIALS = (
    Trial("cse-fsl (exact gradients)", {"preset": "cse-fsl"}, 3),
    Trial("frozen", {"preset": "frozen"}, 1),
    Trial("heron (default)", {}),
    Trial("four directions a sample", {"num_directions": 4}, 5),
    Trial("central difference", {"difference": "central"}, 3),
    Trial("one direction a batch", {"direction_groups": 1}),
    Trial("16 groups", {"direction_groups": 16}),
    Trial("radius 1e-4", {"smoothing_radius": 1e-4}),
    Trial("a scale for each tensor", {"direction_scale": "tensor_rms"}),
    Trial("one layer a round, in turn", {"direction_scale": "block_rms"}),
    Trial("one layer a round", {"direction_scale": "block_rms"}),
    Trial("half the step", {"relative_step": 0.025}),
    Trial("twice the step", {"relative_step": 0.1}),
    Trial("k = 5 (an upload every fifth step)", {"upload_interval": 5}),
)


def run_trial(job: tuple[int, int]) -> float:
    """Return a trial's score: mean test accuracy of the last rounds."""
    from heron_cli.simulation.configuration import simulation_config
    from heron_cli.simulation.run import simulate

    trial, seed = TRIALS[job[0]], job[1]
    options = {
        "preset": "heron",
        "data": DATA,
        "clients": CLIENTS,
        "seed": seed,
        "rounds": ROUNDS,
        "local_steps": LOCAL_STEPS,
        "batch_size": BATCH_SIZE,
        "model_options": next(front.options for front in FRONTS if front.name == "deep"),
        **trial.options,
    }
    rounds = simulate(simulation_config(**options))["rounds"]
    return statistics.fmean(row["test_accuracy"] for row in rounds[-LAST_ROUNDS:])


def main() -> int:
    """Run what is missing, two at a time, and write the table."""
    quiet_libraries()
    path = ROOT / "docs" / "results" / "deep-front.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    jobs = [(i, seed) for seed in SEEDS for i, trial in enumerate(TRIALS) if str(seed) not in scores.get(trial.name, {})]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=quiet_libraries) as pool:
        for (index, seed), score in zip(jobs, pool.map(run_trial, jobs), strict=True):
            scores.setdefault(TRIALS[index].name, {})[str(seed)] = round(score, 4)
            write_json_atomically(path, scores)
            print(f"{TRIALS[index].name}, seed {seed}: {score:.2%}", flush=True)
    (path.with_suffix(".md")).write_text("\n".join(_report(scores)) + "\n", encoding="utf-8")
    return 0


def _report(scores: dict[str, dict[str, float]]) -> list[str]:
    mean = {name: statistics.fmean(found.values()) for name, found in scores.items()}
    exact, frozen = mean[TRIALS[0].name], mean[TRIALS[1].name]
    best = max((trial.name for trial in TRIALS[2:] if trial.name in mean), key=lambda name: mean[name])
    lines = [
        "# A deep front from scratch, by forward passes alone",
        "",
        f"Written by `make bench-deep`: Fashion-MNIST, {CLIENTS} clients, IID, {ROUNDS} rounds of {LOCAL_STEPS} steps, batch {BATCH_SIZE}, a front of four",
        f"convolutions (23,520 weights). Test accuracy in per cent, mean of the last {LAST_ROUNDS} rounds, seeds {', '.join(map(str, SEEDS))}: differences below half a point mean",
        "little. Passes: of a sample through the front in a step, a backward pass counting as two. Rows below `heron` change one thing of its defaults.",
        "",
        "| what | passes | accuracy | against frozen |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {trial.name} | {trial.passes} | {100 * mean[trial.name]:.2f} | {100 * (mean[trial.name] - frozen):+.2f} |"
        for trial in TRIALS
        if trial.name in mean
    ]
    return [
        *lines,
        "",
        f'The best forward-only row is "{best}", {100 * (mean[best] - frozen):+.2f} points against `frozen`;',
        f"exact gradients stand at {100 * (exact - frozen):+.2f}. The share of an estimate that is signal is G / (G + d): {BATCH_SIZE} directions a step for",
        "23,520 weights make 0.3 %, and no choice of groups, radius, scale or uploads changes that ratio; training one layer at a time raises it by the number of",
        "layers at most, and more directions cost passes in proportion. `heron` answers by moving little, so that it does no harm. Where such a front must be",
        "trained from scratch, `cse-fsl` within its memory ceiling (client.md) is the answer.",
    ]


if __name__ == "__main__":
    sys.exit(main())
