"""How long a warm heron-server takes until it listens, beside another checkout: AGAINST=/path/to/checkout make bench-start. Prints ratios, writes nothing.

Warm: the program cache is filled by a start of the same checkout, which is not counted. GPT-2-small has random weights of the true shapes. Starts of the two
checkouts take turns, so that a busy machine disturbs both; the ratio is that of their medians. REPEATS=7: so many of each, 5 by default.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from heron_cli.processes import ProcessGroup, start_server
from heron_common.process.quiet_libraries import quiet_libraries

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("proto", "common", "server", "edge_client")
COLD_DEADLINE_SECONDS = 1800.0


@dataclass(frozen=True)
class Case:
    """A server to start; `floor` is what its ratio to 66fd0db may be at most."""

    name: str
    words: tuple[str, ...]
    floor: float


def cases(folder: Path) -> tuple[Case, ...]:
    """Return the cases; a model that is read from files lies in the folder."""
    from transformers import GPT2Config

    GPT2Config().save_pretrained(folder / "gpt2")
    options = "weights=random adapter=lora rank=8 head_blocks=1"
    gpt2 = ("--model", f"hf:{folder / 'gpt2'}", "--cut", "3", "--model-options", options, "--data-spec", "text:128:next-token")
    return (
        Case("cnn", ("--clients", "1", "--data-spec", "digits"), 0.6),
        Case("GPT-2-small", ("--clients", "1", "--batch-size", "8", *gpt2), 0.4),
    )


def environment_of(checkout: Path) -> dict[str, str]:
    """Return what makes a server run a checkout's code; raises SystemExit if it would run another."""
    added = {"PYTHONPATH": os.pathsep.join(str(checkout / root) for root in ROOTS)}
    words = [sys.executable, "-c", "import heron_server; print(heron_server.__file__)"]
    place = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, **added}).stdout.strip()
    if not Path(place).is_relative_to(checkout):
        raise SystemExit(f"expected the code of {checkout}, found {place}: give the path of a checkout")
    return added


def seconds_to_listen(case: Case, checkout: Path, folder: Path) -> float:
    """Start a server of a new run, wait until it listens, and end it."""
    environment = environment_of(checkout)
    with tempfile.TemporaryDirectory(dir=folder) as name, ProcessGroup(Path(name) / "logs") as group:
        words = [*case.words, "--program-cache", str(folder / f"cache-{case.name}{str(checkout).replace(os.sep, chr(45))}")]
        begin = time.monotonic()
        start_server(group, "server", Path(name) / "run", words, environment, COLD_DEADLINE_SECONDS)
        return time.monotonic() - begin


def compare(case: Case, checkouts: tuple[Path, Path], folder: Path, repeats: int) -> None:
    """Print the median seconds of both checkouts, and their ratio."""
    found: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    for checkout in checkouts:
        cold = seconds_to_listen(case, checkout, folder)
        print(f"{case.name} {checkout}: {cold:.1f} s with an empty program cache", flush=True)
    for _ in range(repeats):
        for checkout in checkouts:
            found[checkout].append(seconds_to_listen(case, checkout, folder))
    ours, theirs = (statistics.median(found[checkout]) for checkout in checkouts)
    every = " ".join(f"{a:.1f}/{b:.1f}" for a, b in zip(*found.values(), strict=True))
    print(
        f"{case.name}: {ours:.2f} s against {theirs:.2f} s, ratio {ours / theirs:.2f} (at most {case.floor:g} of 66fd0db); each: {every}",
        flush=True,
    )


def main() -> int:
    """Compare this checkout with the one that AGAINST names."""
    quiet_libraries()
    against = os.environ.get("AGAINST", "")
    if not against:
        print("expected another checkout to compare with, found none: AGAINST=/path/to/checkout make bench-start", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in cases(folder):
            compare(case, (ROOT, Path(against).resolve()), folder, int(os.environ.get("REPEATS", "5")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
