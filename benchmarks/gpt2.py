"""Fronts of GPT-2 as a client holds them: peak memory and seconds of a step beside plain PyTorch; writes docs/results/gpt2.md and .json. Run by `make bench-gpt2`.

Random weights of the true shapes: neither memory nor time depends on their values. Every row is a fresh process; HERON's rows are whole heron-client
processes, gRPC and uploads included, that train over loopback. QUICK=1: GPT-2-small alone, to docs/results/quick.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heron_cli.processes import ProcessGroup, read_summary, start_server
from heron_common.files.atomic import write_json_atomically
from heron_common.process.quiet_libraries import quiet_libraries

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE, LENGTH, RANK, STEPS = 8, 128, 8, 3


@dataclass(frozen=True)
class Shape:
    """A model and where it is cut; the paper's figures for it, if it has any."""

    name: str
    config: dict[str, Any]
    front_blocks: int
    head_blocks: int
    paper: str = ""


SHAPES = (
    Shape("GPT-2-small", {}, 3, 1),
    Shape(
        "GPT-2-medium",
        {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        6,
        3,
        "The paper's Table III (GPT-2-medium, its batch and length): HERON-SFL 4.03 GB and 5.26 TFLOP a step, CSE-FSL 9.09 GB and 9.48 TFLOP.",
    ),
)
CASES = {
    "GPT-2-small": (
        ("heron", "float32"),
        ("heron", "bfloat16"),
        ("heron", "int8"),
        ("heron-paper", "float32"),
        ("cse-fsl", "float32"),
        ("cse-fsl", "int8"),
    ),
    "GPT-2-medium": (("heron", "float32"), ("heron", "int8"), ("cse-fsl", "float32")),
}
"""Preset and storage of the frozen weights."""

TORCH = ("inference", "zeroth-order", "backprop")


def heron_row(shape: Shape, preset: str, base: str, folder: Path) -> dict[str, Any]:
    """Run a client for two rounds and return what it reports of itself."""
    model, data = folder / shape.name, folder / "tokens.npz"
    given = {
        "preset": preset,
        "clients": 1,
        "rounds": 2,
        "local-steps": STEPS,
        "batch-size": BATCH_SIZE,
        "warmup-rounds": 0,
        "model": f"hf:{model}",
        "cut": shape.front_blocks,
        "model-options": f"weights=random adapter=lora rank={RANK} head_blocks={shape.head_blocks} base={base}",
        "data-spec": f"text:{LENGTH}:next-token",
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    directory = folder / f"{shape.name}-{preset}-{base}"
    with ProcessGroup(directory / "logs") as group:
        server, address = start_server(group, "server", run_dir=directory, arguments=words, deadline_seconds=1800)
        client_words = ["--server", address, "--data", f"npz:{data}", "--name", "client", "--state-dir", str(directory / "state")]
        client = group.start("client", "heron_client", arguments=client_words)
        if client.wait(1800) != 0 or server.wait(120) != 0:
            raise RuntimeError(f"{shape.name} {preset} {base}: {client.last_line()} / {server.last_line()}")
    summary = read_summary(directory)
    row = summary["clients"]["client"]
    rounds = summary["rounds"]
    return {
        "runtime": f"heron-client, {base} base",
        "step": preset,
        "peak_memory_bytes": row["peak_memory_bytes"],
        "step_seconds": rounds[-1]["seconds"] / STEPS,
        "base_bytes": row["bytes_down"]["base"],
        "trained_weights": summary["model"]["client_model_weights"],
        "forward_equivalents_per_sample": rounds[-1]["client_forward_equivalents"] / (STEPS * BATCH_SIZE),
        "uplink_bytes_per_step": sum(count for kind, count in row["bytes_up"].items() if kind != "control") / (2 * STEPS),
    }


def torch_row(shape: Shape, method: str, folder: Path) -> dict[str, Any]:
    """Run the same step in plain PyTorch in a fresh process."""
    words = [method, str(folder / shape.name), str(shape.front_blocks), str(shape.head_blocks), str(BATCH_SIZE), str(LENGTH), str(RANK)]
    command = [sys.executable, str(ROOT / "benchmarks" / "torch_gpt2_step.py"), *words]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {"runtime": "PyTorch, no network", "step": method, **found}


def measure(shape: Shape) -> dict[str, Any]:
    """Return every row of one model."""
    from transformers import GPT2Config

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        GPT2Config(**shape.config).save_pretrained(folder / shape.name)
        tokens = np.random.default_rng(0).integers(0, 50257, (64, LENGTH), np.int64)
        np.savez(folder / "tokens.npz", x=tokens)
        rows = []
        for preset, base in CASES[shape.name]:
            rows.append(_told(shape, heron_row(shape, preset, base, folder)))
        for method in TORCH:
            rows.append(_told(shape, torch_row(shape, method, folder)))
    weights = next(row["base_bytes"] for row in rows if row["runtime"].endswith("float32 base"))
    return {"rows": rows, "weight_bytes": weights, "paper": shape.paper}


def _told(shape: Shape, row: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{shape.name} {row['runtime']} {row['step']}: {row['peak_memory_bytes'] / 1e6:.0f} MB, {row['step_seconds']:.2f} s a step",
        flush=True,
    )
    return row


def write_report(path: Path, found: dict[str, Any]) -> None:
    """Write the tables."""
    lines = [
        "# Fronts of GPT-2",
        "",
        f"Written by `make bench-gpt2`: LoRA of rank {RANK}, batch {BATCH_SIZE}, {LENGTH} tokens, next-token loss over the tied unembedding of 50,257 tokens;",
        "random weights of the true shapes. Peak memory: VmHWM of a fresh process, everything included; `of weights` is its ratio to the bytes of the",
        "frozen weights of front and head in float32. Seconds are of one thread of this machine, for comparison within a table only; those of",
        "heron-client hold the server's step too.",
        "",
    ]
    for name, model in found.items():
        weights = model["weight_bytes"]
        lines += [
            f"## {name}: {weights / 1e6:.0f} MB of weights on the client",
            "",
            "| runtime | step | peak MB | of weights | seconds a step | passes a sample | uplink MB a step |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in model["rows"]:
            passes, uplink = row.get("forward_equivalents_per_sample"), row.get("uplink_bytes_per_step")
            lines.append(
                f"| {row['runtime']} | {row['step']} | {row['peak_memory_bytes'] / 1e6:.0f} | {row['peak_memory_bytes'] / weights:.2f} | {row['step_seconds']:.2f} | "
                f"{'-' if passes is None else f'{passes:.3g}'} | {'-' if uplink is None else f'{uplink / 1e6:.2f}'} |"
            )
        lines += ["", *([model["paper"], ""] if model["paper"] else [])]
    path.write_text("\n".join(lines), encoding="utf-8")


def main() -> int:
    """Measure and write."""
    quiet_libraries()
    quick = os.environ.get("QUICK", "") not in ("", "0")
    directory = ROOT / "docs" / "results" / ("quick" if quick else "")
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for shape in SHAPES[:1] if quick else SHAPES:
        found[shape.name] = measure(shape)
        write_json_atomically(directory / "gpt2.json", found)
        write_report(directory / "gpt2.md", found)
    print(f"written: {directory / 'gpt2.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
