"""Whole runs in this process, and what they left behind: a checkpoint for every round boundary, and the summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate

TINY_FRONT = "front_widths=2 front_strides=2 hidden=8"
"""Of digits it leaves 32 floats a sample at the cut; compiling it takes a fraction of a second."""

EVERY_CHECKPOINT = 1000


@dataclass(frozen=True)
class SimulatedRun:
    """`boundaries[r]` are the checkpoint's tensors after r rounds."""

    summary: dict[str, Any]
    boundaries: list[dict[str, torch.Tensor]]


def run_simulation(run_dir: Path, **options: Any) -> SimulatedRun:
    """Run `heron simulate` on the digits with a tiny model; `options` are named like its options."""
    given = {"clients": 2, "model_options": TINY_FRONT, "run_dir": run_dir, "keep_checkpoints": EVERY_CHECKPOINT, **options}
    return SimulatedRun(simulate(simulation_config(**given)), boundaries_of(run_dir))


def boundaries_of(run_dir: Path) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of every checkpoint of a run, in the order of rounds."""
    return [load_file(path) for path in sorted((run_dir / "checkpoints").glob("round-*.safetensors"))]


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors that are not equal bit for bit, or that only one of the two has."""
    return [name for name in sorted({*one, *other}) if name not in one or name not in other or not torch.equal(one[name], other[name])]
