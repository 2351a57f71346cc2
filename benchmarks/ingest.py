"""What receiving costs the server beside a bare gRPC server, side by side in one run: many small uploads, a thousand clients, large uploads.

Writes docs/results/ingest.json and ingest.md. Processor seconds are of whole processes; the trainer thread's own are reported apart and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from ingest_report import write_report

from heron_cli.processes import LoggedProcess, ProcessGroup, start_server

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
TICKS = os.sysconf("SC_CLK_TCK")
BARE_UPLOADS, BARE_ASKS = 40, 200
SMALL = {50: 40, 200: 40, 1000: 2}
"""Clients, and uploads of each in the one round of a run."""

METRICS_SECONDS = 1.0
"""Reading them costs the server a few milliseconds, which are counted."""

Row = dict[str, Any]


def _processor_seconds(pid: int) -> tuple[float, float]:
    """Return the user and system seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def _status(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0


class Watched:
    """A process whose counters are read while it lives."""

    def __init__(self, pid: int, metrics_address: str = "") -> None:
        self._pid, self._metrics = pid, metrics_address
        self.before = _processor_seconds(pid)
        self.after = self.before
        self.peak_kilobytes = self.threads = 0
        self.trainer_seconds = self._due = 0.0

    def look(self) -> None:
        """Read the counters, if the process is still there."""
        try:
            self.after = _processor_seconds(self._pid)
            self.peak_kilobytes = _status(self._pid, "VmHWM") or self.peak_kilobytes
            self.threads = max(self.threads, _status(self._pid, "Threads"))
            if self._metrics and time.monotonic() >= self._due:
                self._due = time.monotonic() + METRICS_SECONDS
                page = urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=5).read().decode()
                found = re.search(r"^heron_server_trainer_processor_seconds (\S+)", page, re.MULTILINE)
                self.trainer_seconds = float(found.group(1)) if found else self.trainer_seconds
        except OSError:
            return

    def row(self) -> Row:
        """Return what was read, without the trainer's share."""
        user, system = (after - before for after, before in zip(self.after, self.before, strict=True))
        return {
            "processor_seconds": round(user + system - self.trainer_seconds, 2),
            "kernel_seconds": round(system, 2),
            "trainer_seconds": round(self.trainer_seconds, 2),
            "peak_mb": round(self.peak_kilobytes * 1024 / 1e6),
            "threads": self.threads,
        }


def _load(watched: Watched, words: list[str], seconds: float = 600.0) -> Row:
    """Run a load generator to its end and return its report."""
    load = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + seconds
    while load.poll() is None and time.monotonic() < until:
        watched.look()
        time.sleep(0.1)
    if load.poll() is None:
        load.kill()
    report: Row = json.loads(load.communicate()[0] or "{}")
    return report


def bare_small(clients: int) -> Row:
    """Serve small uploads and asks with a bare server."""
    server = subprocess.Popen([sys.executable, str(HERE / "bare_server.py"), str(4 * clients)], stdout=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().strip() if server.stdout is not None else ""
        watched = Watched(server.pid)
        words = ["--server", f"127.0.0.1:{port}", "--clients", str(clients)]
        words += ["--bare-uploads", str(BARE_UPLOADS), "--bare-asks", str(BARE_ASKS)]
        report = _load(watched, [str(HERE / "ingest_clients.py"), *words])
        return {"server": "bare", "clients": clients, **report, **watched.row()}
    finally:
        server.kill()
        server.wait()


def _heron(group: ProcessGroup, scratch: Path, options: dict[str, object]) -> tuple[LoggedProcess, str, str]:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    server, address = start_server(group, "server", run_dir=scratch / "run", arguments=words)
    metrics: str = json.loads((scratch / "run" / "server.json").read_text())["metrics"]
    return server, address, metrics


def heron_small(clients: int, uploads: int) -> Row:
    """Serve one round of small uploads with `heron-server`."""
    with tempfile.TemporaryDirectory() as scratch, ProcessGroup(Path(scratch) / "logs") as group:
        options = {
            "preset": "frozen",
            "data-spec": "digits",
            "model-options": "front_widths=4,2 front_strides=1,2",
            "clients": clients,
            "max-clients": clients + 8,
            "rounds": 1,
            "local-steps": uploads,
            "batch-size": 64,
            "cohort-wait-seconds": 120,
            "liveness-seconds": 120,
        }
        server, address, metrics = _heron(group, Path(scratch), options)
        watched = Watched(server.process.pid, metrics)
        probe = subprocess.Popen([sys.executable, str(HERE / "ingest_probe.py"), address], stdout=subprocess.PIPE, text=True)
        report = _load(watched, [str(HERE / "ingest_clients.py"), "--server", address, "--clients", str(clients)])
        report["bystander"] = json.loads(probe.communicate(timeout=60)[0] or "{}")
        opened, closed = _round_seconds(server.log.read_text())
        return {
            "server": "heron",
            "clients": clients,
            **report,
            **watched.row(),
            "uploads": clients * uploads,
            "round_seconds": closed - opened,
        }


def _round_seconds(log: str) -> tuple[float, float]:
    """Return when the round was opened and closed, from the log's stamps."""

    def at(event: str) -> float:
        found = re.search(rf"T(\d+):(\d+):([\d.]+)Z INFO heron_server: {event}", log)
        hours, minutes, seconds = (float(part) for part in found.groups()) if found else (0.0, 0.0, 0.0)
        return round(3600 * hours + 60 * minutes + seconds, 3)

    return at("round opened"), at("round closed")


def large(uploads: int) -> list[Row]:
    """Send large uploads to a bare server and to `heron-server`, in chunks of one size; milliseconds of processor time per MB on each side."""
    rows: list[Row] = []
    script = str(HERE / "ingest_large.py")
    server = subprocess.Popen([sys.executable, str(HERE / "bare_server.py"), "8"], stdout=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().strip() if server.stdout is not None else ""
        watched = Watched(server.pid)
        report = _load(watched, [script, "--server", f"127.0.0.1:{port}", "--uploads", str(uploads), "--bare"])
        rows.append({"server": "bare", **_per_megabyte(watched, report)})
    finally:
        server.kill()
        server.wait()
    with tempfile.TemporaryDirectory() as scratch, ProcessGroup(Path(scratch) / "logs") as group:
        options = {
            "preset": "frozen",
            "data-spec": "3x32x32:10",
            "model-options": "front_widths=64 front_strides=1 hidden=4",
            "clients": 1,
            "rounds": 1,
            "local-steps": uploads,
            "batch-size": 64,
            "server-threads": 1,
            "spool-bytes": 4 << 30,
        }
        server_process, address, metrics = _heron(group, Path(scratch), options)
        watched = Watched(server_process.process.pid, metrics)
        report = _load(watched, [script, "--server", address, "--uploads", str(uploads)])
        rows.append({"server": "heron", **_per_megabyte(watched, report)})
    return rows


def _per_megabyte(watched: Watched, report: Row) -> Row:
    row = watched.row()
    sent = report["megabytes"]
    server = 1000 * row["processor_seconds"] / sent + report["decode_ms_per_mb"]
    return {**row, **report, "server_ms_per_mb": round(server, 3), "client_ms_per_mb": round(1000 * report["processor_seconds"] / sent, 3)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=list(SMALL))
    given = parser.parse_args()
    small = []
    for clients in given.clients:
        small += [bare_small(clients) if clients <= 200 else None, heron_small(clients, SMALL[clients])]
        print(json.dumps([row for row in small[-2:] if row]), flush=True)
    document = {"command": "make bench-ingest", "small": [row for row in small if row], "large": large(24)}
    print(json.dumps(document["large"]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ingest.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    write_report(document, RESULTS / "ingest.md")
    print((RESULTS / "ingest.md").read_text())


if __name__ == "__main__":
    main()
