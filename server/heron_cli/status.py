"""`heron status`: the live page of a running server or client, from its metrics endpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from heron_cli.status_page.page import Rows, phase_of, rows_of
from heron_cli.status_page.scrape import Scrape, scrape
from heron_common.errors import TransportError
from heron_common.exit_codes import ExitCode
from heron_common.terminal.console import make_console, make_table
from heron_common.terminal.option_parser import above_zero, host_and_port
from heron_common.terminal.output import say

_LAST_PHASES = {"finished", "draining", "left"}


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "status",
        help="show a running server or client live, from its metrics",
        description="Shows phase, round, clients, losses, accuracy, bytes, and drops by reason, once a second until Ctrl-C or the end of the run. "
        "Without a terminal, or with --once, it prints them once. Exit codes: 0 it answered, 5 nobody answers, 2 something else answers.",
    )
    parser.add_argument(
        "address",
        type=host_and_port,
        metavar="HOST:PORT",
        help="metrics endpoint of heron-server (127.0.0.1:9464) or heron-client (--metrics-port)",
    )
    parser.add_argument("--once", action="store_true", help="print one page and end")
    parser.add_argument("--interval-seconds", type=above_zero, default=1.0, metavar="X", help="time between two looks (default: 1)")
    parser.set_defaults(run=run_status)


def run_status(options: argparse.Namespace) -> int:
    """Show the page. Raises as `scrape` does, on the first look."""
    first = scrape(options.address)
    if options.once or sys.stdout is None or not sys.stdout.isatty():
        rows = rows_of(first)
        width = max(len(name) for name, _ in rows)
        say(*(f"{name.ljust(width)}  {value}" for name, value in rows))
        return ExitCode.OK
    return _watch(options.address, first, lambda: time.sleep(options.interval_seconds))


def _watch(address: str, latest: Scrape, wait: Callable[[], None]) -> int:
    """Draw every look until the process ends its run, or somebody presses Ctrl-C."""
    from rich.live import Live

    lost: str | None = None
    with Live(_table(address, latest, lost), console=make_console(), auto_refresh=False) as live:
        try:
            while True:
                wait()
                try:
                    latest, lost = scrape(address), None
                except TransportError as exc:
                    lost = str(exc)
                live.update(_table(address, latest, lost), refresh=True)
                if lost and phase_of(latest) in _LAST_PHASES:
                    return ExitCode.OK
        except KeyboardInterrupt:
            return ExitCode.OK


def _table(address: str, latest: Scrape, lost: str | None) -> Any:
    rows: Rows = [*rows_of(latest), *([("no answer", "this is the latest page; trying again")] if lost else [])]
    return make_table(f"heron-{latest.side} at {address}", rows, box=None, padding=(0, 2, 0, 0))
