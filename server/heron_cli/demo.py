"""`heron demo`: real handwritten digits, one server, four client processes on this machine; HERON beside a frozen front."""

from __future__ import annotations

import argparse
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from heron_cli.processes import LoggedProcess, ProcessError, ProcessGroup, read_summary, start_server
from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.exit_codes import ExitCode
from heron_common.terminal.console import make_console
from heron_common.terminal.figures import FRONT_WEIGHTS, human_bytes, human_number
from heron_common.terminal.option_parser import at_least
from heron_common.terminal.output import say

PRESETS = ("heron", "frozen")
PIXELS = 64
"""A digit is 8 x 8 pixels; as a raw image, one byte each."""

CLIENT_END_SECONDS = 30.0
"""Clients hear that the run is finished within a second, unless they are waiting to reach a server that has ended."""

STALL_SECONDS = 120.0
"""A round takes about a second; without one for so long, something is wrong."""


@dataclass(frozen=True)
class DemoRun:
    """One finished run of the demo."""

    preset: str
    summary: dict[str, Any]
    lost_clients: int


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "demo", help="train digits with a server and client processes on this machine, with live progress and a result table"
    )
    parser.add_argument("--rounds", type=at_least(1), default=100, metavar="N", help="rounds of each run (default: 100)")
    parser.add_argument(
        "--clients", type=at_least(1), default=4, metavar="N", help="client processes, each with its own shard (default: 4)"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="seed of weights, directions and sample order (default: 0)"
    )
    parser.add_argument("--run-dir", type=Path, default=None, metavar="PATH", help="where the runs go (default: heron-runs/demo-TIME)")
    parser.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace) -> int:
    """Run HERON and its control one after the other and print the table.

    Raises:
        ProcessError: a server failed, or all clients did.

    """
    directory = options.run_dir or Path("heron-runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    say(
        f"Training scikit-learn's handwritten digits: one heron-server, {options.clients} heron-client processes, {options.rounds} rounds.",
        f"Everything goes to {directory}; logs are in its logs folders.",
        "",
    )
    console = make_console()
    progress = _progress(console)
    with progress if progress is not None else nullcontext():
        runs = [_run_preset(name, directory / name, options=options, progress=progress) for name in PRESETS]
    console.print(_table(runs))
    say(*_notes(runs))
    return ExitCode.OK


def _run_preset(preset: str, directory: Path, *, options: argparse.Namespace, progress: Progress | None) -> DemoRun:
    task = progress.add_task(preset, total=options.rounds, accuracy="starting") if progress is not None else None
    with ProcessGroup(directory / "logs") as group:
        server, address = start_server(group, "server", run_dir=directory, arguments=_server_arguments(preset, options))
        clients = [
            group.start(
                f"client-{index}", "heron_client", arguments=_client_arguments(address, directory, index=index, count=options.clients)
            )
            for index in range(options.clients)
        ]
        _watch(
            preset,
            directory,
            server=server,
            clients=clients,
            show=lambda done, accuracy: _show(preset, progress, task=task, done=done, total=options.rounds, accuracy=accuracy),
        )
        for client in clients:
            client.wait(CLIENT_END_SECONDS)
    lost = sum(client.exit_code != 0 for client in clients)
    return DemoRun(preset, read_summary(directory), lost)


def _server_arguments(preset: str, options: argparse.Namespace) -> list[str]:
    given = {
        "preset": preset,
        "data-spec": "digits",
        "eval-data": "digits:test",
        "clients": options.clients,
        "min-updates": max(1, options.clients // 2),
        "rounds": options.rounds,
        "seed": options.seed,
        # Lockstep makes the demo's result the same every time, whatever the scheduler of this machine does.
        "server-schedule": ServerSchedule.LOCKSTEP.value,
        "liveness-seconds": 10,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def _client_arguments(address: str, directory: Path, *, index: int, count: int) -> list[str]:
    given = {
        "server": address,
        "data": "digits:train",
        "shard": f"{index}/{count}",
        "name": f"client-{index}",
        "state-dir": directory / "state" / str(index),
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def _watch(preset: str, directory: Path, *, server: LoggedProcess, clients: list[LoggedProcess], show: Any) -> None:
    done, changed = -1, time.monotonic()
    while server.exit_code is None:
        rounds = read_summary(directory).get("rounds", [])
        if len(rounds) != done:
            done, changed = len(rounds), time.monotonic()
            show(done, rounds[-1]["test_accuracy"] if rounds else math.nan)
        if all(client.exit_code is not None for client in clients) and server.exit_code is None and time.monotonic() - changed > 15:
            raise ProcessError(f"every client of the {preset!r} run ended early: {clients[0].last_line()} (logs: {directory / 'logs'})")
        if time.monotonic() - changed > STALL_SECONDS:
            raise ProcessError(
                f"the {preset!r} run made no progress for {STALL_SECONDS:.0f} s: {server.last_line()} (logs: {directory / 'logs'})"
            )
        time.sleep(0.2)
    if server.exit_code != 0:
        raise ProcessError(
            f"heron-server of the {preset!r} run ended with code {server.exit_code}: {server.last_line()} (log: {server.log})"
        )
    rounds = read_summary(directory)["rounds"]
    if len(rounds) != done:
        show(len(rounds), rounds[-1]["test_accuracy"])


def _progress(console: Any) -> Progress | None:
    if not console.is_terminal:
        return None
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        TextColumn("round {task.completed}/{task.total}"),
        TextColumn("{task.fields[accuracy]}"),
    )
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _show(preset: str, progress: Progress | None, *, task: Any, done: int, total: int, accuracy: float) -> None:
    text = "starting" if math.isnan(accuracy) else f"test accuracy {accuracy:.1%}"
    if progress is not None:
        progress.update(task, completed=done, accuracy=text)
    elif done == total or done % max(1, total // 10) == 0:
        say(f"{preset:8} round {done}/{total}, {text}")


def _table(runs: list[DemoRun]) -> Table:
    table = Table(title="Result", title_justify="left")
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run.preset, justify="right")
    for name, cells in _rows(runs):
        table.add_row(name, *cells)
    return table


def _rows(runs: list[DemoRun]) -> list[tuple[str, list[str]]]:
    summaries = [run.summary for run in runs]
    clients = [list(s["clients"].values()) for s in summaries]
    labels = [sum(c["bytes_up"].get("labels", 0) for c in cs) for cs in clients]
    up = [sum(sum(c["bytes_up"].values()) for c in cs) for cs in clients]
    down = [sum(sum(c["bytes_down"].values()) for c in cs) for cs in clients]

    def memory(name: str) -> list[str]:
        return [", ".join(f"{c[name] / 1e6:.0f}" for c in cs) + " MB" for cs in clients]

    return [
        ("test accuracy", [f"{s['rounds'][-1]['test_accuracy']:.2%}" for s in summaries]),
        (FRONT_WEIGHTS, [human_number(s["model"]["client_model_weights"]) for s in summaries]),
        ("rounds", [str(s["rounds_completed"]) for s in summaries]),
        ("bytes up, all clients", [human_bytes(n) for n in up]),
        ("the same samples as raw images", [human_bytes(n / 8 * PIXELS) for n in labels]),
        ("bytes down, all clients", [human_bytes(n) for n in down]),
        ("peak memory of each client", memory("peak_memory_bytes")),
        ("of that without pages of files", memory("peak_anonymous_bytes")),
        ("seconds", [f"{s['seconds']:.0f}" for s in summaries]),
        ("clients lost on the way", [str(run.lost_clients) for run in runs]),
    ]


def _notes(runs: list[DemoRun]) -> list[str]:
    return [
        "",
        "The clients ran forward passes only; `frozen` is the same run with a front that never moves: the difference is what HERON taught the devices.",
        "",
        "Checkpoints:",
        *(f"  {run.preset:8} {run.summary['checkpoint']}" for run in runs),
    ]
