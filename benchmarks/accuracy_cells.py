"""What `make bench-accuracy` compares: fronts, partitions, presets and seeds, how long each runs, how one cell is run and how its curve is read."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from heron_common.algorithm.plan import Estimator
from heron_common.algorithm.plan_counts import forward_equivalents
from heron_common.algorithm.presets import PRESETS, preset

DATA = "fashion-mnist"
CLIENTS = 5
LOCAL_STEPS = 20
BATCH_SIZE = 64
LAST_ROUNDS = 3
"""A cell's score is the mean over so many last rounds: one round's score jumps by half a point."""

BACK = "back_widths=32"


@dataclass(frozen=True)
class Front:
    """A front of the model family cnn, and the rounds of the comparison at equal steps."""

    name: str
    options: str
    rounds: int


FRONTS = (
    Front("narrow", f"front_widths=4,1 front_strides=2,2 {BACK}", 16),
    Front("wide", f"front_widths=16,16 front_strides=2,2 {BACK}", 10),
    Front("deep", f"front_widths=16,32,32,32 front_strides=2,2,1,1 {BACK}", 6),
)
"""87 weights and 49 floats a sample at the cut; 2,544 and 784; 23,520 and 1,568."""

PARTITIONS = ("iid", "dirichlet:0.5")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Cell:
    """One run."""

    front: Front
    partition: str
    preset: str
    seed: int
    rounds: int

    @property
    def key(self) -> str:
        """Its name in the results; it changes with everything that the result depends on."""
        return f"{self.front.name}/{self.partition}/{self.preset}/{self.seed}/{self.rounds}x{LOCAL_STEPS}"


def passes_per_sample(name: str) -> float:
    """Return a preset's client forward-equivalents for one sample of one step."""
    plan = preset(name).plan
    return forward_equivalents(plan) / (plan.local_steps * plan.batch_size)


def rounds_of(name: str, front: Front) -> int:
    """Return the rounds that a preset runs: enough to read its curve at equal steps and at the passes that heron has spent by then."""
    return max(front.rounds, rounds_at_equal_passes(name, front.rounds))


def rounds_at_equal_passes(name: str, rounds: int) -> int:
    """Return the rounds after which a preset has spent the client passes of `rounds` rounds of heron."""
    return max(1, int(rounds * passes_per_sample("heron") / passes_per_sample(name)))


def score_after(accuracies: list[float], rounds: int) -> float:
    """Return the mean test accuracy of the last LAST_ROUNDS rounds up to `rounds`."""
    return statistics.fmean(accuracies[max(0, rounds - LAST_ROUNDS) : rounds])


def all_cells(quick: bool) -> list[Cell]:
    """Return every cell, seed by seed, so that an interrupted run has whole tables of fewer seeds."""
    seeds = SEEDS[:1] if quick else SEEDS
    fronts = [Front(f.name, f.options, max(2, f.rounds // 4)) for f in FRONTS] if quick else list(FRONTS)
    return [
        Cell(front, partition, name, seed, rounds_of(name, front))
        for seed in seeds
        for front in fronts
        for partition in PARTITIONS
        for name in PRESETS
    ]


def run_cell(cell: Cell) -> dict[str, Any]:
    """Simulate one cell and return its curves: accuracy, uplink and downlink bytes and client passes after each round."""
    from heron_cli.simulation.configuration import simulation_config
    from heron_cli.simulation.run import simulate

    summary = simulate(
        simulation_config(
            data=DATA,
            clients=CLIENTS,
            preset=cell.preset,
            partition=cell.partition,
            seed=cell.seed,
            rounds=cell.rounds,
            local_steps=LOCAL_STEPS,
            batch_size=BATCH_SIZE,
            model_options=cell.front.options,
        )
    )
    rounds, clients = summary["rounds"], summary["clients"].values()
    up = sum(sum(count for kind, count in c["bytes_up"].items() if kind != "control") for c in clients)
    down = sum(sum(count for kind, count in c["bytes_down"].items() if kind not in ("control", "program")) for c in clients)
    equivalents = [row["client_forward_equivalents"] for row in rounds]
    accuracies = [row["test_accuracy"] for row in rounds]
    return {
        "front": cell.front.name,
        "partition": cell.partition,
        "preset": cell.preset,
        "seed": cell.seed,
        "rounds": cell.rounds,
        "compared_rounds": cell.front.rounds,
        "accuracies": [round(value, 4) for value in accuracies],
        "forward_equivalents": sum(equivalents),
        "forward_passes": sum(row["client_forward_passes"] for row in rounds),
        "uplink_bytes": up,
        "downlink_bytes": down,
        "client_model_weights": summary["model"]["client_model_weights"],
        "cut": summary["model"]["cut"],
        "direction_groups": summary["algorithm"]["plan"]["direction_groups"],
        "micro_batch": summary["algorithm"]["plan"]["micro_batch"],
        "smoothing_radius": summary["algorithm"]["plan"]["smoothing_radius"],
        "update_encoding": summary["algorithm"]["plan"]["update_encoding"],
        "diverged_round": summary["diverged_round"],
        "seconds": summary["seconds"],
    }


def trains_by_differences(name: str) -> bool:
    """Whether a preset's clients need forward passes only."""
    return preset(name).plan.estimator is not Estimator.FIRST_ORDER
