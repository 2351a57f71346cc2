"""Size, start and memory of heron-client as a folder, as one file and as pip installs it, beside plain PyTorch: `make bench-binary`.

Writes docs/results/binary.md. All of them run side by side, turn by turn, against a real server on loopback; the median of the turns counts.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from heron_cli.processes import ProcessGroup, start_server
from heron_common.data.sources import open_source
from heron_common.process.process_memory import resident_memory
from heron_common.process.quiet_libraries import quiet_libraries

ROOT = Path(__file__).resolve().parents[1]
TURNS = 5
RUN = {"clients": 1, "rounds": 3, "local-steps": 4, "eval-data": "digits:test", "server-schedule": "lockstep"}
FRONT = "front_widths=4,2 front_strides=1,2"
TORCH = ("backprop", 64, 16, 1)
"""benchmarks/torch_step.py: the least that a PyTorch client does, on a batch of the same 64 samples, without any network."""


@dataclass
class Subject:
    """One way to have a client on a device, and what was measured of it."""

    name: str
    command: list[str]
    installed: Path
    packed_bytes: int | None
    environment: dict[str, str] = field(default_factory=dict)
    start_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def main() -> int:
    """Measure, print and write the page."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source = open_source("digits:train")
        np.savez(directory / "digits.npz", x=source.inputs.read(source.rows), y=source.labels.read(source.rows))
        subjects = list(_subjects(directory))
        for turn in range(TURNS):
            for subject in subjects:
                _measure(subject, directory / f"{turn}-{subjects.index(subject)}", directory / "digits.npz")
        torch_peak, torch_seconds = _torch()
        page = _page(subjects, torch_peak, torch_seconds)
    print(page)
    (ROOT / "docs" / "results" / "binary.md").write_text(page, encoding="utf-8")
    return 0


def _subjects(directory: Path) -> Iterator[Subject]:
    architecture = platform.machine()
    tarball = next((ROOT / "dist").glob(f"heron-client-*-linux-{architecture}.tar.xz"))
    with tarfile.open(tarball) as archive:
        archive.extractall(directory, filter="data")
    folder = directory / "heron-client"
    empty = {"PATH": "/nonexistent", "HOME": str(directory)}
    yield Subject("folder (tarball)", [str(folder / "heron-client")], folder, tarball.stat().st_size, empty)
    onefile = tarball.with_name(tarball.name.removesuffix(".tar.xz"))
    yield Subject("one file", [str(onefile)], onefile, onefile.stat().st_size, empty)
    environment = directory / "pip"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[text,images]"]
    subprocess.run(install, check=True)
    yield Subject("pip install", [str(environment / "bin" / "heron-client")], environment, None, empty | {"PATH": str(python.parent)})


def _measure(subject: Subject, directory: Path, data: Path) -> None:
    """Run a client through a whole run; what counts is the time until the server has it joined, and the largest VmHWM of its processes."""
    words = [word for key, value in {**RUN, "model-options": FRONT}.items() for word in (f"--{key}", str(value))]
    with ProcessGroup(directory / "logs") as group:
        server, address = start_server(group, "server", run_dir=directory / "run", arguments=words)
        log = directory / "client.log"
        command = [
            *subject.command,
            "--server",
            address,
            "--data",
            f"npz:{data}",
            "--name",
            "client",
            "--state-dir",
            str(directory / "state"),
        ]
        started, joined, peaks = time.monotonic(), None, {}
        with log.open("wb") as output:
            client = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=subject.environment)
            while client.poll() is None:
                if joined is None and b"client joined" in server.log.read_bytes():
                    joined = time.monotonic() - started
                for process in _family(client.pid):
                    peaks[process] = max(peaks.get(process, 0), resident_memory(process).peak_bytes)
                time.sleep(0.01)
        if client.returncode or joined is None or server.wait(60):
            raise RuntimeError(f"{subject.name} failed: {log.read_text()[-2000:]}")
    own = [float(found) for found in re.findall(r"peak_memory_mb=([\d.]+)", log.read_text())]
    subject.start_seconds.append(joined)
    # One file is two processes: what unpacks waits for what computes.
    subject.peak_bytes.append(max(sum(peaks.values()), int(own[-1] * 1e6)))


def _family(pid: int) -> list[int]:
    """Return a process and its children."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return [pid, *children]


def _torch() -> tuple[int, float]:
    words = [str(word) for word in TORCH]
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        seconds.append(time.monotonic() - started)
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "torch_step.py"), *words], check=True, capture_output=True, text=True
    )
    found = re.search(r'"peak_memory_bytes": (\d+)', result.stdout)
    assert found is not None
    return int(found[1]), statistics.median(seconds)


def _page(subjects: list[Subject], torch_peak: int, torch_seconds: float) -> str:
    import torch

    packages = Path(torch.__file__).parents[1]
    torch_bytes = sum(
        _size(packages / name)
        for name in ("torch", "torchgen", "nvidia", "triton", "sympy", "networkx", "mpmath")
        if (packages / name).exists()
    )
    rows = [
        f"| {s.name} | {f'{s.packed_bytes / 1e6:.1f} MB' if s.packed_bytes else '-'} | {_size(s.installed) / 1e6:.0f} MB | "
        f"{statistics.median(s.start_seconds):.2f} s | {statistics.median(s.peak_bytes) / 1e6:.1f} MB |"
        for s in subjects
    ]
    rows.append(
        f"| PyTorch {torch.__version__} alone | - | {torch_bytes / 1e6:.0f} MB | {torch_seconds:.2f} s (import) | {torch_peak / 1e6:.0f} MB |"
    )
    return "\n".join(
        [
            "# heron-client without Python",
            "",
            f"`make bench-binary` on {platform.machine()}, {os.cpu_count()} cores, {TURNS} turns each, side by side; medians. Written by benchmarks/binary.py.",
            "",
            "| client | compressed | installed | start to Join | peak memory |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"A whole run each time: digits, {FRONT}, {RUN['rounds']} rounds of {RUN['local-steps']} steps, a real server on loopback.",
            "The binaries have no Python on PATH. Start to Join runs from the start of the process to the server's line that the client has joined,",
            "as polled every 10 ms. Peak memory is VmHWM; of one file that of both of its processes, of which the first only unpacks and waits. What one file",
            "unpacks lies in $TMPDIR and counts as memory where that is a tmpfs. All three hold the extras `text` and `images`. Seconds depend on what else the",
            "machine does; compare within the table.",
            "",
            f"PyTorch's row is the import of torch, its packages on this disk, and benchmarks/torch_step.py {' '.join(map(str, TORCH))} (ResNet-18's front): another and larger",
            "step than the client's above, without network or data, so that its memory says what a PyTorch client begins with and no more.",
            "",
        ]
    )


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())


if __name__ == "__main__":
    sys.exit(main())
