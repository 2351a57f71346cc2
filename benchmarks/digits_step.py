"""What a step of heron on a small front costs: beside cse-fsl's, and a whole simulation beside another checkout's. Prints ratios; run by `make bench-step`.

All figures are processor seconds of `heron simulate` on digits (4 clients, 126 weights). A step's are the difference between a long run and a short one, so
that neither imports nor compiling count; the server's part of it is in both presets. AGAINST=/path/to/checkout compares the whole command too, with warm
program caches. Runs take turns, so that a busy machine disturbs all alike; ratios are of medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("proto", "common", "server", "edge_client")
SHORT, LONG = 10, 40
REPEATS = 3
TASK = ("--model", "cnn", "--model-options", "front_widths=4,2 front_strides=1,2", "--data", "digits", "--clients", "4", "--seed", "0")


def processor_seconds(checkout: Path, preset: str, *, rounds: int, folder: Path) -> float:
    """Return what `heron simulate` of so many rounds uses, of user and system time."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        words = ["--preset", preset, "--rounds", str(rounds), "--run-dir", f"{name}/run", "--program-cache", str(folder / checkout.name)]
        code = f"import sys; from heron_cli.cli import main; sys.exit(main({['simulate', '--log-level', 'error', *TASK, *words]!r}))"
        path = os.pathsep.join(str(checkout / root) for root in ROOTS)
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"expected heron simulate of {checkout} to succeed, it ended with status {status}")
        return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Print the ratio of a step to cse-fsl's and, with AGAINST, that of the whole command to another checkout's."""
    against = os.environ.get("AGAINST", "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for preset in ("heron", "cse-fsl"):
            processor_seconds(ROOT, preset, rounds=2, folder=folder)
        steps: dict[str, list[float]] = {"heron": [], "cse-fsl": []}
        for _ in range(REPEATS):
            for preset, found in steps.items():
                short, long = (processor_seconds(ROOT, preset, rounds=rounds, folder=folder) for rounds in (SHORT, LONG))
                found.append((long - short) / (LONG - SHORT) / 40)
        heron, exact = (1e3 * statistics.median(found) for found in steps.values())
        print(
            f"a step of heron, server's part included: {heron:.2f} ms of a processor, of cse-fsl {exact:.2f} ms, ratio {heron / exact:.2f}"
        )
        if against:
            other = Path(against).resolve()
            processor_seconds(other, "heron", rounds=2, folder=folder)
            pairs = [[processor_seconds(c, "heron", rounds=LONG, folder=folder) for c in (ROOT, other)] for _ in range(REPEATS)]
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"heron simulate, {LONG} rounds: {ours:.1f} s of a processor, {other} {theirs:.1f} s, ratio {ours / theirs:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
