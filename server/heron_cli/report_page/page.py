"""The whole page: what a run is and came to on top, then its sections. Nothing on it is fetched, and nothing on it runs."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from heron_cli.report_page import markup, sections
from heron_cli.report_page.figures import count, duration, percent, size
from heron_cli.report_page.figures import decimal as four_figures
from heron_common.terminal.figures import FRONT_WEIGHTS
from heron_common.version import VERSION
from heron_server.ending import best_round

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Should anything ever slip through unescaped, a browser neither runs nor fetches it."""


def report_page(summary: dict[str, Any], leakage: str = "") -> str:
    """Return a summary as one HTML document; `leakage` is the section of what the cut gives away, if that was measured."""
    title = f"{summary['preset']}: {summary['rounds_completed']} of {summary['num_rounds']} rounds"
    body = markup.element("header", markup.element("h1", markup.text(title)) + _identity(summary) + _warnings(summary) + _tiles(summary))
    parts = (sections.learning, sections.traffic, sections.memory, sections.time_spent, sections.losses, sections.clients, sections.plan)
    body += "".join(part(summary) for part in parts if summary["rounds"] or part in (sections.clients, sections.plan))
    body += leakage
    style = (files("heron_cli.report_page") / "style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{markup.text(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _identity(summary: dict[str, Any]) -> str:
    run = summary["configuration"]["run"]
    words = f"Run {summary['run_id']}, model {run['model']} on {run['data_spec']}, seed {run['seed']}. Written by heron {VERSION}."
    return markup.element("p", markup.text(words), class_="quiet run")


def _warnings(summary: dict[str, Any]) -> str:
    lines = []
    if summary["diverged_round"] is not None:
        lines.append(
            f"Training of the front diverged in round {summary['diverged_round'] + 1}; since then it rests with its last finite weights."
        )
    if summary.get("simulation", {}).get("interrupted"):
        lines.append("The simulation was interrupted.")
    if not summary["rounds"]:
        lines.append("No round has been closed yet.")
    return "".join(markup.element("p", markup.text(line), class_="warning") for line in lines)


def _tiles(summary: dict[str, Any]) -> str:
    last = summary["rounds"][-1] if summary["rounds"] else {}
    best = best_round(summary["rounds"]) or (None, "–")
    rows = list(summary["clients"].values())
    peaks = [row["peak_memory_bytes"] for row in rows if row["peak_memory_bytes"]]
    drops = summary.get("drops")
    tiles = {
        "test accuracy": percent(last.get("test_accuracy")),
        f"best, round {best[1]}": percent(best[0]),
        "test loss": four_figures(last.get("test_loss")),
        "clients": count(sum(row.get("clients", 1) for row in rows)),
        "largest client": size(max(peaks)) if peaks else "–",
        "sent by clients": size(sum(sum(row["bytes_up"].values()) for row in rows)),
        "received by clients": size(sum(sum(row["bytes_down"].values()) for row in rows)),
        "drops": count(sum(sum(by.values()) for by in drops.values())) if drops is not None else "–",
        FRONT_WEIGHTS: count(summary["model"]["client_model_weights"]),
        "time": duration(summary["seconds"]),
    }
    cells = "".join(
        markup.element("div", markup.element("dt", markup.text(name)) + markup.element("dd", markup.text(value)))
        for name, value in tiles.items()
    )
    return markup.element("dl", cells, class_="tiles")
