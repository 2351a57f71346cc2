"""How a run shows itself: a line in a console, a small table with a curve in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heron_cli.report_page import markup
from heron_cli.report_page.figures import decimal as four_figures
from heron_cli.report_page.figures import duration, percent, size

_WIDTH, _HEIGHT = 240, 48


def line_of(summary: Mapping[str, Any], is_training: bool) -> str:
    """Return what a run is and has come to, as one line."""
    parts = [f"{summary['preset']}: {summary['rounds_completed']} of {summary['num_rounds']} rounds"]
    accuracy, loss = (_last(summary, name) for name in ("test_accuracy", "server_loss"))
    parts += [f"test accuracy {percent(accuracy)}"] if accuracy is not None else []
    parts += [f"server loss {four_figures(loss)}"] if loss is not None and accuracy is None else []
    return ", ".join([*parts, _state(summary, is_training)])


def table_of(summary: Mapping[str, Any], is_training: bool) -> str:
    """Return the same and a little more as HTML, with a curve of the accuracy, or of the loss where there is none."""
    clients = summary["clients"].values()
    sent = sum(sum(row["bytes_up"].values()) for row in clients)
    scored = _last(summary, "test_accuracy") is not None
    rows = {
        "rounds": f"{summary['rounds_completed']} of {summary['num_rounds']}",
        "test accuracy": percent(_last(summary, "test_accuracy")),
        "test loss": four_figures(_last(summary, "test_loss")),
        "server loss": four_figures(_last(summary, "server_loss")),
        "sent by clients": size(sent),
        "time": duration(summary["seconds"]),
        "state": _state(summary, is_training),
    }
    cells = "".join(
        markup.element("tr", markup.element("th", markup.text(name), style="text-align:left") + markup.element("td", markup.text(value)))
        for name, value in rows.items()
    )
    title = markup.element("strong", markup.text(f"HERON, {summary['preset']}"))
    curve = _curve([row[("test_accuracy" if scored else "server_loss")] for row in summary["rounds"]])
    return markup.element("div", title + curve + markup.element("table", cells))


def _state(summary: Mapping[str, Any], is_training: bool) -> str:
    if is_training:
        return "training"
    reason = summary.get("ended_because")
    return "stopped, can be resumed" if reason is None else str(reason)


def _last(summary: Mapping[str, Any], name: str) -> float | None:
    return next((row[name] for row in reversed(summary["rounds"]) if row.get(name) is not None), None)


def _curve(values: Sequence[float | None]) -> str:
    """Return a line through the values as an inline SVG; nothing of fewer than two."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(value for _, value in known), max(value for _, value in known)
    across, up = _WIDTH / max(1, len(values) - 1), _HEIGHT / ((high - low) or 1.0)
    points = " ".join(f"{place * across:.1f},{_HEIGHT - (value - low) * up:.1f}" for place, value in known)
    line = f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    return f'<div><svg width="{_WIDTH}" height="{_HEIGHT + 4}" viewBox="0 -2 {_WIDTH} {_HEIGHT + 4}" role="img">{line}</svg></div>'
