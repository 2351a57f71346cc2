"""Live progress on a terminal: a small table that is redrawn a few times a second. Elsewhere log lines say the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from heron_common.terminal.foreign_text import printable
from heron_common.terminal.log_setup import redirect_logs
from heron_common.terminal.output import discard_stream

Rows = list[tuple[str, str]]


def make_console(stderr: bool = False) -> Any:
    """Return rich's console; when nobody reads any more it falls silent, where rich would end the process."""
    from rich.console import Console

    class SilencedConsole(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            discard_stream(sys.stderr if stderr else sys.stdout)

    return SilencedConsole(stderr=stderr)


def make_table(title: str, rows: Rows, **shape: Any) -> Any:
    """Return rich's table of names and values, in which foreign text is text."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title), style="italic"), title_justify="left", show_header=False, **shape)
    for name, value in rows:
        table.add_row(Text(printable(name), style="dim"), Text(printable(value)))
    return table


class LiveConsole:
    """Shows `rows()` under a title until closed; a context manager."""

    def __init__(self, title: str, rows: Callable[[], Rows]) -> None:
        # rich costs two megabytes of memory, which a device without a terminal need not pay.
        from rich.live import Live

        self._title = title
        self._rows = rows
        self._live = Live(get_renderable=self._render, console=make_console(stderr=True), refresh_per_second=4)

    def __enter__(self) -> LiveConsole:
        self._live.start()
        # rich has replaced sys.stderr by one that prints above the table; log lines have to go there too.
        redirect_logs(sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        redirect_logs(sys.stderr)

    def _render(self) -> Any:
        return make_table(self._title, self._rows(), box=None, padding=(0, 2, 0, 0))
