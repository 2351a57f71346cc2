"""What a client's step costs on ResNet-18's front: memory, seconds, passes, bytes; writes docs/results/client.md and .json. Run by `make bench-client`.

Memory: VmHWM of a fresh heron-client process that trains against a heron-server over loopback, and of a fresh process with the same step in plain PyTorch.
Seconds: a second heron-client against a server of its own runs two bare passes of the loss program, and the step without a network, before each of its
steps (paced_client.py).
QUICK=1: fewer repetitions.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from client_report import write_report

from heron_cli.processes import LoggedProcess, ProcessGroup, read_summary, start_server
from heron_common.files.atomic import write_json_atomically
from heron_common.process.process_memory import resident_memory
from heron_common.process.quiet_libraries import quiet_libraries
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_common.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 256
MODEL_OPTIONS = "back=linear"
MEMORY_STEPS = 3
REFERENCE_MICRO_BATCH = 1
"""Two passes of this micro-batch stand beside every step, so that steps of different micro-batches compare."""


@dataclass(frozen=True)
class Case:
    """A preset, and what is changed of it."""

    preset: str
    wire: str = "float32"


CASES = (
    *map(Case, ("heron", "heron-paper", "cse-fsl", "sflv2", "blockwise", "last-exact", "hybrid")),
    Case("heron", "int8"),
)
TORCH_CASES = (("backprop", BATCH_SIZE), ("backprop", 16), ("zeroth-order", BATCH_SIZE), ("zeroth-order", 16))


class Bench:
    """The data, the program cache and the processes of one benchmark, in a temporary directory."""

    def __init__(self, directory: Path, steps: int) -> None:
        import numpy as np

        from heron_server.models.registry import build_model
        from heron_server.programs.export import ProgramCache

        self._directory, self._steps = directory, steps
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (2 * BATCH_SIZE, 3, 32, 32), dtype=np.uint8)
        np.savez(directory / "images.npz", x=images, y=generator.integers(0, 10, 2 * BATCH_SIZE))
        self._model = build_model(
            "resnet",
            {"back": "linear"},
            data=DataSpecification("images", (3, 32, 32), num_classes=10, mean=127.5, standard_deviation=73.6),
            seed=0,
        )
        self._cache = ProgramCache(directory / "programs")
        self._runs = 0

    def case(self, case: Case) -> dict[str, Any]:
        """Measure one preset."""
        options = {"preset": case.preset, "wire-dtype": case.wire}
        warmup = 1 if case.preset == "heron" else 0
        summary, peak = self._memory_run({**options, "rounds": 1 + warmup, "local-steps": MEMORY_STEPS})
        plan, client = summary["algorithm"]["plan"], summary["clients"]["client"]
        pace = self._paced_run({**options, "local-steps": self._steps, "smoothing-radius": plan["smoothing_radius"]}, plan["micro_batch"])
        uploads = MEMORY_STEPS * (1 + warmup)
        equivalents = summary["rounds"][-1]["client_forward_equivalents"] / (MEMORY_STEPS * BATCH_SIZE)
        return {
            "preset": case.preset,
            "runtime": "onnxruntime",
            "batch_size": BATCH_SIZE,
            "micro_batch": plan["micro_batch"],
            "direction_groups": plan["direction_groups"],
            "wire": case.wire,
            "peak_memory_bytes": max(peak, client["peak_memory_bytes"]),
            **pace,
            "uplink_bytes_per_step": (client["bytes_up"]["activations"] + client["bytes_up"]["labels"]) // uploads,
            "downlink_bytes_per_step": client["bytes_down"].get("cut_gradient", 0) // uploads,
            "update_bytes_per_round": client["bytes_up"].get("update", 0),
            "forward_equivalents_per_step": equivalents,
        }

    def torch_case(self, method: str, micro_batch: int) -> dict[str, Any]:
        """Measure the same step in plain PyTorch."""
        command = [sys.executable, str(ROOT / "benchmarks" / "torch_step.py"), method, str(BATCH_SIZE), str(micro_batch), str(self._steps)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)
        return {
            "preset": method,
            "runtime": "torch",
            "batch_size": BATCH_SIZE,
            "micro_batch": micro_batch,
            "direction_groups": 1,
            "wire": None,
            "peak_memory_bytes": found["peak_memory_bytes"],
            **_seconds([row["step"] for row in found["steps"]], [row["bare"] for row in found["steps"]]),
            "uploading_step_seconds": None,
            "uplink_bytes_per_step": 0,
            "downlink_bytes_per_step": 0,
            "update_bytes_per_round": 0,
            "forward_equivalents_per_step": 3.0 if method == "backprop" else 2.0,
        }

    def flops(self) -> int:
        """Return the multiply-adds of one sample's forward through front and head, as the paper's FLOPs count."""
        from heron_server.programs.cost import client_cost

        return client_cost(self._model, with_head=True).forward_flops // 2

    def _memory_run(self, options: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Run a plain heron-client; return the run's summary and the largest VmHWM seen from outside."""
        peak = 0
        with self._server(options) as (group, server, client_words, run_dir):
            client = group.start("client", "heron_client", arguments=client_words)
            while client.exit_code is None:
                peak = max(peak, resident_memory(client.process.pid).peak_bytes)
                time.sleep(0.05)
            _check(client, server)
            return read_summary(run_dir), peak

    def _paced_run(self, options: dict[str, Any], micro_batch: int) -> dict[str, Any]:
        """Run a client with bare passes between its steps; the first step warms up and does not count."""
        output = self._directory / f"pace-{self._runs}.jsonl"
        programs = ",".join(f"{self._loss_program(rows)}:{rows}" for rows in dict.fromkeys((micro_batch, REFERENCE_MICRO_BATCH)))
        with self._server({**options, "rounds": 1, "warmup-rounds": 0, "local-steps": self._steps + 1}) as (group, server, words, _):
            script = str(ROOT / "benchmarks" / "paced_client.py")
            client = group.start_command("paced-client", [sys.executable, script, str(output), programs, *words])
            client.wait(900)
            _check(client, server)
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()][1:]
        own, reference = [row["bare"][0] for row in rows], [row["bare"][-1] for row in rows]
        dry, uploading = [row["dry"] for row in rows], [row["step"] for row in rows]
        return {
            **_seconds(dry, own),
            "step_over_reference_processor": _median_ratio(dry, reference, 1),
            "uploading_step_seconds": statistics.median(step[0] for step in uploading),
            "uploading_step_over_two_forwards": _median_ratio(uploading, own, 0),
            "uploading_step_over_two_forwards_processor": _median_ratio(uploading, own, 1),
        }

    def _loss_program(self, micro_batch: int) -> Path:
        path = self._directory / f"loss-{micro_batch}.onnx"
        path.write_bytes(self._cache.program(self._model, ProgramKind.LOSS, micro_batch=micro_batch))
        return path

    def _server(self, options: dict[str, Any]) -> _ServerRun:
        self._runs += 1
        fixed = {
            "model": "resnet",
            "model-options": MODEL_OPTIONS,
            "data-spec": "3x32x32:10:127.5:73.6",
            "clients": 1,
            "batch-size": BATCH_SIZE,
            "program-cache": self._directory / "programs",
        }
        run_dir = self._directory / f"run-{self._runs}"
        return _ServerRun(run_dir, {**fixed, **options}, self._directory / "images.npz")


class _ServerRun:
    """A heron-server and the options of a client for it; both end with the context."""

    def __init__(self, run_dir: Path, options: dict[str, Any], images: Path) -> None:
        self._run_dir, self._options, self._images = run_dir, options, images
        self._group = ProcessGroup(run_dir / "logs")

    def __enter__(self) -> tuple[ProcessGroup, LoggedProcess, list[str], Path]:
        words = [word for name, value in self._options.items() for word in (f"--{name}", str(value))]
        server, address = start_server(self._group, "server", run_dir=self._run_dir, arguments=words)
        client = ["--server", address, "--data", f"npz:{self._images}", "--name", "client", "--state-dir", str(self._run_dir / "state")]
        return self._group, server, client, self._run_dir

    def __exit__(self, *exception: Any) -> None:
        self._group.__exit__(*exception)


def _check(client: LoggedProcess, server: LoggedProcess) -> None:
    if client.wait(1) != 0 or server.wait(60) != 0:
        raise RuntimeError(f"a run failed: {client.last_line()} / {server.last_line()}")


def _seconds(steps: list[list[float]], bare: list[list[float]]) -> dict[str, float]:
    """Return medians, and the median of the ratios of each step to the two bare passes before it."""
    return {
        "step_seconds": statistics.median(step[0] for step in steps),
        "two_forward_seconds": statistics.median(two[0] for two in bare),
        "step_over_two_forwards": _median_ratio(steps, bare, 0),
        "step_over_two_forwards_processor": _median_ratio(steps, bare, 1),
    }


def _median_ratio(steps: list[list[float]], bare: list[list[float]], clock: int) -> float:
    """`clock` 0 is the wall's, 1 that of the computing thread on its processor."""
    return statistics.median(step[clock] / two[clock] for step, two in zip(steps, bare, strict=True))


def main() -> int:
    """Measure every case, then write the two documents."""
    quiet_libraries()
    quick = os.environ.get("QUICK", "") not in ("", "0")
    started = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), 2 if quick else 5)
        for case in CASES:
            rows.append(bench.case(case))
            _show(rows[-1])
        for method, micro_batch in TORCH_CASES:
            rows.append(bench.torch_case(method, micro_batch))
            _show(rows[-1])
        flops = bench.flops()
    for row in rows:
        row["gflop_per_step"] = flops * row["forward_equivalents_per_step"] * BATCH_SIZE / 1e9
    document = {
        "command": "make bench-client" + (" QUICK=1" if quick else ""),
        "heron": VERSION,
        "multiply_adds_per_sample": flops,
        "steps": 2 if quick else 5,
        "seconds": round(time.monotonic() - started),
        "rows": rows,
    }
    path = ROOT / "docs" / "results" / "client.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(path, document)
    write_report(document, path.with_suffix(".md"))
    return 0


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['runtime']} {row['preset']} {row['wire'] or ''} micro-batch {row['micro_batch']}: {row['peak_memory_bytes'] / 1e6:.0f} MB, "
        f"{row['step_seconds']:.2f} s a step, {row['step_over_two_forwards']:.2f} times two forwards",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
