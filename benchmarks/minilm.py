"""MiniLM fine-tuned with LoRA on tweets: heron beside its rivals and a frozen front, three seeds; writes docs/results/minilm.md and .json. Run by `make bench-minilm`.

Equal examples for all. Cells run two at a time as simulations of the real client and server code; each is written as it ends and skipped the next time.
Client memory is VmHWM of a fresh heron-client process that trains the same plan over loopback. QUICK=1: one seed, two rounds, to docs/results/quick.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from tweets import CLASSES, prepare

from heron_cli.processes import ProcessGroup, read_summary, start_server
from heron_common.files.atomic import write_json_atomically
from heron_common.process.quiet_libraries import quiet_libraries

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("heron", "heron-paper", "cse-fsl", "sflv2", "frozen")
SEEDS = (0, 1, 2)
LAST_ROUNDS = 3
"""One round's score jumps by three points: batches are small and the server's rate is constant."""

CLIENTS, ROUNDS, LOCAL_STEPS, BATCH_SIZE, LENGTH, CUT = 4, 8, 10, 16, 32, 2
DATA = Path(os.environ.get("HERON_EXAMPLE_DATA", ROOT / "heron-runs" / "tweets"))


def settings(preset: str, seed: int, rounds: int) -> dict[str, Any]:
    """Return what one run is configured with."""
    return {
        "preset": preset,
        "seed": seed,
        "rounds": rounds,
        "clients": CLIENTS,
        "local_steps": LOCAL_STEPS,
        "batch_size": BATCH_SIZE,
        "model": f"hf:{DATA / 'model'}",
        "cut": str(CUT),
        "model_options": "adapter=lora rank=4",
        "data_spec": f"text:{LENGTH}:{','.join(CLASSES)}",
    }


def run_cell(preset: str, seed: int, rounds: int) -> dict[str, Any]:
    """Simulate one run; return its accuracies by round and what it cost."""
    from heron_cli.simulation.configuration import simulation_config
    from heron_cli.simulation.run import simulate

    data = {"data": f"csv:{DATA / 'train.csv'}:text:sentiment", "eval_data": f"csv:{DATA / 'test.csv'}:text:sentiment"}
    summary = simulate(simulation_config(**settings(preset, seed, rounds), **data))
    return {
        "accuracies": [round(row["test_accuracy"], 4) for row in summary["rounds"]],
        "losses": [round(row["test_loss"], 4) for row in summary["rounds"]],
        "forward_equivalents": sum(row["client_forward_equivalents"] for row in summary["rounds"]),
        "front_weights": summary["model"]["client_model_weights"],
        "seconds": summary["seconds"],
    }


def measure_memory(preset: str) -> int:
    """Return VmHWM of a fresh heron-client process after two rounds of this plan."""
    given = {**settings(preset, 0, 2), "clients": 1, "local_steps": 1, "warmup_rounds": 0}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory() as folder, ProcessGroup(Path(folder) / "logs") as group:
        directory = Path(folder)
        server, address = start_server(group, "server", run_dir=directory, arguments=words)
        data = f"csv:{DATA / 'train.csv'}:text:sentiment"
        client = group.start(
            "client", "heron_client", arguments=["--server", address, "--data", data, "--name", "client", "--state-dir", f"{folder}/state"]
        )
        if client.wait(300) != 0 or server.wait(60) != 0:
            raise RuntimeError(f"the memory run of {preset} failed: {client.last_line()} / {server.last_line()}")
        return int(read_summary(directory)["clients"]["client"]["peak_memory_bytes"])


def write_report(path: Path, known: dict[str, Any], seeds: tuple[int, ...], rounds: int) -> None:
    """Write the table and what it says in words."""
    rows, finals = [], {}
    for preset in PRESETS:
        cells = [known["cells"][f"{preset}/{seed}/{rounds}"] for seed in seeds if f"{preset}/{seed}/{rounds}" in known["cells"]]
        if not cells:
            continue
        scores = [100 * statistics.fmean(cell["accuracies"][-LAST_ROUNDS:]) for cell in cells]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        finals[preset] = (statistics.fmean(scores), spread)
        passes = cells[0]["forward_equivalents"] / (CLIENTS * rounds * LOCAL_STEPS * BATCH_SIZE)
        peak = known["memory"].get(preset)
        memory = f"{peak / 1e6:.0f}" if peak else "-"
        rows.append(f"| {preset} | {finals[preset][0]:.2f} ± {spread:.2f} | {len(scores)} | {passes:.1f} | {memory} |")
    lines = [
        "# MiniLM on tweets",
        "",
        f"Written by `make bench-minilm`: the pretrained encoder (six blocks, {CUT} on the client, LoRA of rank 4 in all), three classes of sentiment, {CLIENTS} clients,",
        f"{rounds} rounds of {LOCAL_STEPS} steps, batch {BATCH_SIZE}, {LENGTH} tokens: {CLIENTS * rounds * LOCAL_STEPS * BATCH_SIZE} examples for every row,",
        f"each seen once at most. Test accuracy in per cent on 1,000 tweets, mean of the last {LAST_ROUNDS} rounds as in accuracy.md;",
        "then mean ± deviation over seeds; one standard error of such a test is 1.5 points. Client memory: VmHWM of a fresh `heron-client` process,",
        "imports, gRPC, tokenizer and mapped frozen weights included.",
        "Passes a sample count a backward pass as two.",
        "",
        "| preset | test accuracy | seeds | client passes a sample | client peak MB |",
        "|---|---|---|---|---|",
        *rows,
        "",
        *_words(finals),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _words(finals: dict[str, tuple[float, float]]) -> list[str]:
    if "frozen" not in finals:
        return []
    lines = []
    for preset in PRESETS:
        if preset == "frozen" or preset not in finals:
            continue
        difference = finals[preset][0] - finals["frozen"][0]
        spread = (finals[preset][1] ** 2 + finals["frozen"][1] ** 2) ** 0.5
        said = (
            "no difference beyond the spread"
            if abs(difference) <= spread
            else ("training the front helped" if difference > 0 else "training the front hurt")
        )
        lines.append(f"- `{preset}` against `frozen`: {difference:+.2f} points: {said}.")
    return lines


def main() -> int:
    """Run what is missing and write the report."""
    quiet_libraries()
    quick = os.environ.get("QUICK", "") not in ("", "0")
    seeds, rounds = (SEEDS[:1], 2) if quick else (SEEDS, ROUNDS)
    directory = ROOT / "docs" / "results" / ("quick" if quick else "")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "minilm.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": {}, "memory": {}}
    prepare(DATA)
    missing = [(preset, seed) for seed in seeds for preset in PRESETS if f"{preset}/{seed}/{rounds}" not in known["cells"]]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=quiet_libraries) as pool:
        futures = {pool.submit(run_cell, preset, seed, rounds): f"{preset}/{seed}/{rounds}" for preset, seed in missing}
        for future in as_completed(futures):
            try:
                known["cells"][futures[future]] = future.result()
            except Exception as exc:
                print(f"{futures[future]} FAILED: {exc!r}", flush=True)
                continue
            write_json_atomically(path, known)
            print(
                f"{futures[future]}: {known['cells'][futures[future]]['accuracies'][-1]:.2%}, {known['cells'][futures[future]]['seconds']:.0f} s",
                flush=True,
            )
    for preset in PRESETS:
        if preset not in known["memory"]:
            known["memory"][preset] = measure_memory(preset)
            write_json_atomically(path, known)
            print(f"client memory {preset}: {known['memory'][preset] / 1e6:.1f} MB", flush=True)
    write_report(path.with_suffix(".md"), known, seeds, rounds)
    print(f"written: {path.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
