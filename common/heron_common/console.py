"""Live progress on a terminal: a small table that is redrawn a few times a second. Elsewhere log lines say the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from heron_common.log_setup import redirect_logs

Rows = Callable[[], list[tuple[str, str]]]


def is_terminal() -> bool:
    """Return whether standard error is a terminal, so that live progress makes sense."""
    return sys.stderr.isatty()


class LiveConsole:
    """Shows `rows()` under a title until closed; a context manager."""

    def __init__(self, title: str, rows: Rows) -> None:
        # rich costs two megabytes of memory, which a device without a terminal need not pay.
        from rich.console import Console
        from rich.live import Live

        self._title = title
        self._rows = rows
        self._live = Live(get_renderable=self._render, console=Console(stderr=True), refresh_per_second=4)

    def __enter__(self) -> LiveConsole:
        self._live.start()
        # rich has replaced sys.stderr by one that prints above the table; log lines have to go there too.
        redirect_logs(sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        redirect_logs(sys.stderr)

    def _render(self) -> Any:
        from rich.table import Table

        table = Table(title=self._title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in self._rows():
            table.add_row(f"[dim]{name}[/dim]", value)
        return table


def human_bytes(count: float) -> str:
    """Return bytes for people, in decimal units: 1234567 -> '1.23 MB'."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    # 999.5 and more would round up to 1000, which belongs to the next unit.
    while count >= 999.5 and power < len(units) - 1:
        count /= 1000
        power += 1
    return f"{count:.0f} {units[power]}" if power == 0 or count >= 999.5 else f"{count:.3g} {units[power]}"
