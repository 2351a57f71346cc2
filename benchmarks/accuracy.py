"""Every preset at equal client passes on Fashion-MNIST; writes docs/results/accuracy.md, .json and plots. Run by `make bench-accuracy`.

Cells run two at a time as simulations (the same client and server code, in-memory transport); each is written as it ends and skipped the next time.
Client memory is VmHWM of a fresh heron-client process that trains the same plan against a heron-server over loopback. QUICK=1: one seed, short runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from accuracy_cells import BATCH_SIZE, DATA, FRONTS, Cell, Front, all_cells, run_cell
from accuracy_report import write_report

from heron_cli.processes import ProcessGroup, read_summary, start_server
from heron_common.algorithm.presets import PRESETS
from heron_common.files.atomic import write_json_atomically
from heron_common.process.quiet_libraries import quiet_libraries

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2


class Results:
    """The JSON document: cells by key and clients' peak memory by front and preset, replaced after every result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.cells: dict[str, dict[str, Any]] = known.get("cells", {})
        self.memory: dict[str, int] = known.get("client_peak_memory_bytes", {})

    def write(self) -> None:
        """Replace the document."""
        write_json_atomically(
            self.path, {"cells": dict(sorted(self.cells.items())), "client_peak_memory_bytes": dict(sorted(self.memory.items()))}
        )


def measure_memory(front: Front, preset: str, directory: Path) -> int:
    """Return VmHWM of a fresh heron-client process after two rounds of this plan."""
    options = {
        "preset": preset,
        "data-spec": DATA,
        "clients": 1,
        "rounds": 2,
        "local-steps": 2,
        "batch-size": BATCH_SIZE,
        "warmup-rounds": 0,
        "model-options": front.options,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with ProcessGroup(directory / "logs") as group:
        server, address = start_server(group, "server", run_dir=directory, arguments=words)
        client_words = ["--server", address, "--data", f"{DATA}:train", "--name", "client", "--state-dir", str(directory / "state")]
        client = group.start("client", "heron_client", arguments=client_words)
        if client.wait(180) != 0 or server.wait(60) != 0:
            raise RuntimeError(f"the memory run of {preset} on {front.name} failed: {client.last_line()} / {server.last_line()}")
    return int(read_summary(directory)["clients"]["client"]["peak_memory_bytes"])


def run_cells(cells: list[Cell], results: Results) -> None:
    """Run what is missing, two at a time, and write each result as it comes."""
    missing = [cell for cell in cells if cell.key not in results.cells]
    started = time.monotonic()
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn"), initializer=quiet_libraries) as pool:
        futures = {pool.submit(run_cell, cell): cell for cell in missing}
        for done, future in enumerate(as_completed(futures), 1):
            cell = futures[future]
            try:
                results.cells[cell.key] = future.result()
            except Exception as exc:
                # One cell must not cost the others; it is tried again the next time.
                print(f"{cell.key} FAILED: {exc!r}", flush=True)
                continue
            results.write()
            print(
                f"[{done}/{len(missing)}, {(time.monotonic() - started) / 60:.1f} min] {cell.key}: {results.cells[cell.key]['accuracies'][-1]:.2%}",
                flush=True,
            )


def run_memory(results: Results) -> None:
    """Measure the client's memory for every front and preset that is not measured yet."""
    for front in FRONTS:
        for preset in PRESETS:
            key = f"{front.name}/{preset}"
            if key not in results.memory:
                with tempfile.TemporaryDirectory() as directory:
                    results.memory[key] = measure_memory(front, preset, Path(directory))
                results.write()
                print(f"client memory {key}: {results.memory[key] / 1e6:.1f} MB", flush=True)


def main() -> int:
    """Run what is missing and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report-only", action="store_true", help="write the report of what is there, run nothing")
    options = parser.parse_args()
    quick = os.environ.get("QUICK", "") not in ("", "0")
    quiet_libraries()
    directory = ROOT / "docs" / "results" / ("quick" if quick else "")
    directory.mkdir(parents=True, exist_ok=True)
    results = Results(directory / "accuracy.json")
    cells = all_cells(quick)
    if not options.report_only:
        run_cells(cells, results)
        run_memory(results)
    write_report(directory, cells, results.cells, results.memory)
    print(f"written: {directory / 'accuracy.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
