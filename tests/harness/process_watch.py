"""Look at a process from outside over a long time: resident memory, open files, threads, and whether they grow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Sample:
    """A process after so many rounds."""

    rounds: int
    resident_bytes: int
    open_files: int
    threads: int


def sample(pid: int, rounds: int) -> Sample:
    """Return how a process stands now."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    status = {name: value for name, _, value in (line.partition(":") for line in lines)}
    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Sample(rounds, 1024 * int(status["VmRSS"].split()[0]), files, int(status["Threads"]))


def after_warm_up(samples: list[Sample], warm_up: float = 1 / 3) -> list[Sample]:
    """Return the samples of the run's later part."""
    first = samples[-1].rounds * warm_up
    return [one for one in samples if one.rounds >= first]


def bytes_a_round(samples: list[Sample]) -> float:
    """Return the least-squares slope of resident memory over rounds."""
    slope, _ = np.polyfit([one.rounds for one in samples], [one.resident_bytes for one in samples], 1)
    return float(slope)
