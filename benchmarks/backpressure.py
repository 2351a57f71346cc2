"""What 200 greedy clients do to the server: its memory over time, what they are told, and whether a well-behaved client gets its rounds done."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from heron_cli.processes import LoggedProcess, ProcessGroup, read_summary, start_server

GREEDY_PER_PROCESS = 50
HERE = Path(__file__).parent


def _resident_megabytes(process: LoggedProcess, field: str) -> float:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) / 1000 if found else 0.0


def _start(group: ProcessGroup, run_dir: Path, clients: int) -> tuple[LoggedProcess, str]:
    options = {
        "clients": clients + 1,
        "max-clients": clients + 8,
        "min-updates": 1,
        "rounds": 1000,
        "local-steps": 4,
        "cohort-wait-seconds": 0,
        "round-deadline-seconds": 5,
        "spool-bytes": 64 << 20,
        "model-options": "front_widths=4,1 front_strides=1,2",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return start_server(group, "server", run_dir=run_dir, arguments=words)


def _start_greedy(address: str, first: int, clients: int, seconds: int) -> subprocess.Popen[str]:
    options = {"server": address, "first": first, "clients": clients, "seconds": seconds}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen([sys.executable, str(HERE / "greedy_client.py"), *words], stdout=subprocess.PIPE, text=True)


def measure(clients: int, seconds: int) -> None:
    """Start a server, greedy clients and a well-behaved one; print a line a second."""
    with tempfile.TemporaryDirectory() as scratch, ProcessGroup(Path(scratch) / "logs") as group:
        run_dir = Path(scratch) / "run"
        server, address = _start(group, run_dir, clients)
        words = ["--server", address, "--data", "digits:train", "--name", "good", "--state-dir", str(Path(scratch) / "state")]
        group.start("good", "heron_client", arguments=words)
        before = _resident_megabytes(server, "VmRSS")
        print(f"resident before: {before:.0f} MB", flush=True)
        greedy = [
            _start_greedy(address, first, min(GREEDY_PER_PROCESS, clients - first), seconds)
            for first in range(0, clients, GREEDY_PER_PROCESS)
        ]
        started = time.monotonic()
        while any(process.poll() is None for process in greedy) and time.monotonic() - started < seconds + 60:
            time.sleep(1.0)
            rounds = read_summary(run_dir).get("rounds_completed", 0)
            print(f"{time.monotonic() - started:5.0f} s  {_resident_megabytes(server, 'VmRSS'):6.0f} MB  rounds {rounds}", flush=True)
        tally: Counter[str] = Counter()
        for process in greedy:
            process.kill()
            tally.update(json.loads(process.communicate()[0] or "{}"))
        print(f"peak {_resident_megabytes(server, 'VmHWM'):.0f} MB, {_resident_megabytes(server, 'VmHWM') - before:.0f} MB above the start")
        print("greedy clients were told:", dict(tally.most_common()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=30)
    given = parser.parse_args()
    measure(min(given.clients, 250), min(given.seconds, 120))


if __name__ == "__main__":
    main()
