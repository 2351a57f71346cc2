"""`heron simulate`: many clients in this process, live progress, a table, a summary and a plot."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from heron_cli.simulation.plots import PlotUnavailable, draw_rounds
from heron_common.errors import Interrupted
from heron_common.exit_codes import ExitCode
from heron_common.process.signals import stop_on_signals
from heron_common.terminal.console import make_console, make_table
from heron_common.terminal.figures import FRONT_WEIGHTS, human_bytes, human_number, human_seconds
from heron_common.terminal.log_setup import redirect_logs, set_up_logging
from heron_common.terminal.output import say

if TYPE_CHECKING:
    from heron_cli.simulation.configuration import SimulationConfig
    from heron_server.summary import RoundRecord

HELP = (
    "train with many clients in this process over an in-memory transport, with any partition of the data and any share of clients a round"
)

LINES = 20
"""Without a terminal about so many rounds are reported, each on its line."""


def add_parser(verbs: Any) -> None:
    """Declare the verb; `run_simulate` reads its options itself, with the reader that heron-server has."""
    verbs.add_parser("simulate", help=HELP, add_help=False).set_defaults(run=run_simulate)


def run_simulate(options: argparse.Namespace) -> int:
    """Run a simulation with the options in `options.words` and show what it does.

    Raises:
        HeronError: see `simulate`; what was done so far is in the summary by then.

    """
    # torch takes seconds to import; the other verbs should not wait for it.
    from heron_cli.simulation.configuration import read_simulation
    from heron_cli.simulation.run import simulate
    from heron_server.ending import closing_lines

    config = read_simulation(options.words)
    set_up_logging(config.simulation.log_level, log_format=config.simulation.log_format)
    say(_headline(config))
    stop = threading.Event()
    with stop_on_signals(stop), _reporting(config) as report:
        try:
            summary = simulate(config, stop, report)
        except Interrupted:
            say(f"stopped before the first of {config.run.rounds} rounds")
            return ExitCode.OK
    if summary["simulation"]["interrupted"]:
        say(f"stopped after {summary['rounds_completed']} of {config.run.rounds} rounds")
    elif summary["rounds_completed"] < config.run.rounds:
        say(f"ended early by {summary['ended_because']}")
    make_console().print(make_table("Result", _rows(summary)))
    say(*closing_lines(summary, config.run.run_dir, resume="heron simulate"))
    if config.simulation.summary is not None:
        say(f"summary: {config.simulation.summary}")
    _plot(config, summary)
    return ExitCode.OK


def _headline(config: SimulationConfig) -> str:
    share = f", {config.cohort_size} of them in each round" if config.cohort_size < config.run.clients else ""
    return (
        f"Simulating {config.run.preset} on {config.training_source} ({config.simulation.partition}): "
        f"{config.run.clients} clients{share}, {config.run.rounds} rounds, seed {config.run.seed}."
    )


@contextmanager
def _reporting(config: SimulationConfig) -> Iterator[Any]:
    """Yield what shows a finished round: a bar on a terminal, lines elsewhere."""
    total, console = config.run.rounds, make_console()
    if not console.is_terminal:
        every = max(1, total // LINES)
        yield lambda record: _print_line(record, total, every)
        return
    columns = (
        BarColumn(),
        TextColumn("round {task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        # rich has replaced sys.stderr by one that prints above the bar; log lines have to go there too.
        redirect_logs(sys.stderr)
        task = progress.add_task("", total=total, figures="starting")
        yield lambda record: progress.update(task, completed=record.round_index + 1, figures=_figures(record))
    redirect_logs(sys.stderr)


def _print_line(record: RoundRecord, total: int, every: int) -> None:
    done = record.round_index + 1
    if done % every == 0 or done == total:
        say(f"round {done}/{total}, {_figures(record)}, {human_seconds(record.seconds)}")


def _figures(record: RoundRecord) -> str:
    figures = [
        f"test accuracy {record.test_accuracy:.1%}" if record.test_accuracy is not None else "",
        f"test perplexity {record.test_perplexity:.2f}" if record.test_perplexity is not None else "",
        *(f"{name} {value}" for name, value in record.federated_figures()[:1]),
        f"server loss {record.server_loss:.3f}" if record.server_loss is not None else "",
    ]
    return ", ".join(figure for figure in figures if figure) or "trained"


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    # It imports ONNX Runtime; the other verbs should not wait for it.
    from heron_server.summary import federated_figures

    clients = summary["clients"].values()
    rounds = summary["rounds"]
    last = rounds[-1] if rounds else {}
    up, down = (sum(sum(client[name].values()) for client in clients) for name in ("bytes_up", "bytes_down"))
    in_rounds = sum(row["seconds"] for row in rounds)
    return [
        ("test accuracy", _figure(last.get("test_accuracy"), "{:.2%}")),
        *([("test perplexity", f"{last['test_perplexity']:.2f}")] if last.get("test_perplexity") is not None else []),
        ("test loss", _figure(last.get("test_loss"), "{:.4f}")),
        *federated_figures(last),
        ("rounds", f"{summary['rounds_completed']} of {summary['num_rounds']}"),
        (FRONT_WEIGHTS, human_number(summary["model"]["client_model_weights"])),
        ("client forward passes", f"{sum(row['client_forward_passes'] for row in rounds):,}"),
        ("bytes up, all clients", human_bytes(up)),
        ("bytes down, all clients", human_bytes(down)),
        ("seconds a round", _figure(in_rounds / len(rounds) if rounds else None, "{:.2f}")),
        ("seconds", f"{summary['seconds']:.1f}"),
        ("peak memory of this process", human_bytes(summary["simulation"]["process_peak_memory_bytes"])),
    ]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _plot(config: SimulationConfig, summary: dict[str, Any]) -> None:
    path = config.plot_path
    if path is None:
        return
    try:
        draw_rounds(summary, path)
    except PlotUnavailable as exc:
        say(exc)
    else:
        say(f"plot: {path}")
