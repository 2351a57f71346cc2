"""How long a warm heron-server takes until it listens, beside another checkout: AGAINST=/path/to/checkout make bench-start. Prints ratios, writes nothing.

Warm: the program cache is filled by a start of the same checkout, which is not counted. GPT-2-small has random weights of the true shapes. Starts of the two
checkouts take turns, so that a busy machine disturbs both; the ratio is that of their medians. On a machine that others use too, look at the seconds of
processor time: they do not hold the waiting for a core. REPEATS=7: so many of each, 5 by default. CASES=cnn: that one alone.
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


@dataclass(frozen=True)
class Start:
    """What a start took until the server listened: seconds on the clock, and of a processor."""

    seconds: float
    processor_seconds: float


def start(case: Case, checkout: Path, folder: Path) -> Start:
    """Start a server of a new run, wait until it listens, and end it."""
    environment = environment_of(checkout)
    cache = folder / f"cache-{case.name}{str(checkout).replace(os.sep, '-')}"
    with tempfile.TemporaryDirectory(dir=folder) as name, ProcessGroup(Path(name) / "logs") as group:
        begin = time.monotonic()
        words = [*case.words, "--program-cache", str(cache), "--grace-seconds", "0"]
        server, _ = start_server(
            group, "server", run_dir=Path(name) / "run", arguments=words, environment=environment, deadline_seconds=COLD_DEADLINE_SECONDS
        )
        return Start(time.monotonic() - begin, processor_seconds(server.process.pid))


def processor_seconds(process_id: int) -> float:
    """Return what a process has used so far, of user and system time; Linux alone has it there."""
    # The name in brackets may hold spaces.
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(case: Case, checkouts: tuple[Path, Path], folder: Path, repeats: int) -> None:
    """Print the median seconds of both checkouts, and their ratio."""
    for checkout in checkouts:
        print(f"{case.name} {checkout}: {start(case, checkout, folder).seconds:.1f} s with an empty program cache", flush=True)
    found = [[start(case, checkout, folder) for checkout in checkouts] for _ in range(repeats)]
    for what, of in (("seconds", lambda one: one.seconds), ("seconds of a processor", lambda one: one.processor_seconds)):
        ours, theirs = (statistics.median(of(pair[side]) for pair in found) for side in (0, 1))
        each = " ".join(f"{of(one):.1f}/{of(other):.1f}" for one, other in found)
        limit = f"at most {case.floor:g} of 66fd0db"
        print(f"{case.name}: {ours:.2f} against {theirs:.2f} {what}, ratio {ours / theirs:.2f} ({limit}); each: {each}", flush=True)


def main() -> int:
    """Compare this checkout with the one that AGAINST names."""
    quiet_libraries()
    against = os.environ.get("AGAINST", "")
    if not against:
        print("expected another checkout to compare with, found none: AGAINST=/path/to/checkout make bench-start", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = os.environ.get("CASES", "").split()
        for case in (case for case in cases(folder) if not chosen or case.name in chosen):
            compare(case, (ROOT, Path(against).resolve()), folder, int(os.environ.get("REPEATS", "5")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
