"""One heron-server and several heron-client processes on this machine, the commands printed as a user would type them on several."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heron_cli.processes import LoggedProcess, ProcessError, ProcessGroup, read_summary, start_server
from heron_common.terminal.figures import human_bytes


@dataclass(frozen=True)
class Run:
    """What an example runs: its command line, the server's options, every client's data."""

    options: argparse.Namespace
    server: dict[str, Any]
    data: str
    code: Path | None = None
    """Folder of modules that server and clients import, if they need any: they look where they are started."""


def example_arguments(
    description: str | None, rounds: int, clients: int = 4, more: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """Read the options that all examples share, and those that `more` adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="heron", help="algorithm (default: heron); frozen is the control")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds (default: {rounds})")
    parser.add_argument("--local-steps", type=int, default=0, help="steps of a client in a round (default: the example's)")
    parser.add_argument("--clients", type=int, default=clients, help=f"client processes (default: {clients})")
    parser.add_argument("--directory", type=Path, default=Path("heron-runs") / Path(sys.argv[0]).stem, help="where everything goes")
    if more is not None:
        more(parser)
    return parser.parse_args()


def run_locally(run: Run) -> int:
    """Start server and clients, tell of every round, and print what came of it; returns an exit code."""
    options = run.options
    directory = options.directory / options.preset
    if run.code is not None:
        # Child processes inherit it; a user would `cd` there.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(run.code), os.environ.get("PYTHONPATH", "")]))
    words = _words({"preset": options.preset, "clients": options.clients, "rounds": options.rounds, **run.server})
    try:
        with ProcessGroup(directory / "logs") as group:
            print(f"$ heron-server {shlex.join(words)}", flush=True)
            server, address = start_server(group, "server", run_dir=directory, arguments=words)
            clients = [_start_client(group, run, directory, address, index) for index in range(options.clients)]
            _watch(server, clients, directory)
            for client in clients:
                client.wait(30)
    except ProcessError as exc:
        print(f"{exc}", file=sys.stderr)
        return 1
    _report(read_summary(directory), directory)
    return 0


def _start_client(group: ProcessGroup, run: Run, directory: Path, address: str, index: int) -> LoggedProcess:
    count = run.options.clients
    given = {"server": address, "data": run.data, "shard": f"{index}/{count}", "name": f"client-{index}"}
    words = _words(given)
    if index in (0, count - 1):
        print(f"$ heron-client {shlex.join(words)}" if index == 0 or count == 1 else f"  ... and {count - 1} more", flush=True)
    return group.start(f"client-{index}", "heron_client", arguments=[*words, *_words({"state-dir": directory / "state" / str(index)})])


def _watch(server: LoggedProcess, clients: list[LoggedProcess], directory: Path) -> None:
    told = 0
    while True:
        ended = server.exit_code is not None
        rounds = read_summary(directory).get("rounds", [])
        for row in rounds[told:]:
            figures = {name: row.get(f"test_{name}") for name in ("accuracy", "perplexity", "loss")}
            print(f"round {row['round_index'] + 1}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if v is not None), flush=True)
        told = len(rounds)
        if ended:
            break
        if all(client.exit_code is not None for client in clients) and server.wait(30) is None:
            raise ProcessError(f"every client ended early: {clients[0].last_line()} (log: {clients[0].log})")
        time.sleep(0.2)
    if server.exit_code != 0:
        raise ProcessError(f"heron-server ended with code {server.exit_code}: {server.last_line()} (log: {server.log})")


def _report(summary: dict[str, Any], directory: Path) -> None:
    clients = summary["clients"].values()
    peak = max(client["peak_memory_bytes"] for client in clients)
    up, down = (sum(sum(client[name].values()) for client in clients) for name in ("bytes_up", "bytes_down"))
    print(
        f"largest client {human_bytes(peak)} of memory; {human_bytes(up)} up, {human_bytes(down)} down, all clients; {summary['seconds']:.0f} s"
    )
    print(f"the trained model: heron export --run-dir {directory} --help")


def _words(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
