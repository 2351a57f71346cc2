"""The sections of a report, each made from the part of a summary that it shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from heron_cli.report_page import markup
from heron_cli.report_page.charts import Chart, Curve, bars
from heron_cli.report_page.figures import Number, count, decimal, duration, percent, plain, size

Summary = dict[str, Any]

_MOST_BARS = 20
"""Clients with a bar of their own, those with the most memory; the table has all."""


def _column(summary: Summary, name: str) -> list[Number]:
    return [row.get(name) for row in summary["rounds"]]


def _rounds(summary: Summary) -> list[int]:
    return [row["round_index"] + 1 for row in summary["rounds"]]


def _chart(summary: Summary, title: str, *, curves: dict[str, str], show: Any, show_tick: Any = None, from_zero: bool = False) -> str:
    drawn = [Curve(name, _column(summary, field)) for name, field in curves.items()]
    return Chart(title, _rounds(summary), curves=drawn, show=show, show_tick=show_tick, from_zero=from_zero).markup()


def _whole_percent(value: Number) -> str:
    return "–" if value is None else f"{100 * value:.4g}%"


def learning(summary: Summary) -> str:
    """Accuracy, perplexity and loss by round."""
    charts = (
        _chart(
            summary,
            "Accuracy after each round; held out by clients: of the model that the round began with",
            curves={"test data": "test_accuracy", "held out by clients": "federated_accuracy"},
            show=percent,
            show_tick=_whole_percent,
        ),
        _chart(summary, "Perplexity", curves={"test data": "test_perplexity", "held out by clients": "federated_perplexity"}, show=decimal),
        _chart(
            summary,
            "Loss",
            curves={
                "test data": "test_loss",
                "server, while training": "server_loss",
                "clients' heads, while training": "local_loss",
                "held out by clients": "federated_loss",
            },
            show=decimal,
        ),
    )
    shown = "".join(charts)
    if not shown:
        return markup.section("learning", "Accuracy and loss", markup.paragraph("No round has been closed yet that has figures."))
    scored = any(value is not None for value in _column(summary, "test_loss"))
    without = "" if scored else markup.paragraph("The server scored nothing: the run has no --eval-data.")
    return markup.section("learning", "Accuracy and loss", without, markup.element("div", shown, class_="pair"))


def traffic(summary: Summary) -> str:
    """Bytes of all clients, by round and kind."""
    kinds: dict[str, Counter[str]] = {"up": Counter(), "down": Counter()}
    for row in summary["clients"].values():
        kinds["up"].update(row["bytes_up"])
        kinds["down"].update(row["bytes_down"])
    totals = {way: sum(kinds[way].values()) for way in kinds}
    rows = [
        [kind, f"to the {'server' if way == 'up' else 'clients'}", size(amount), percent(amount / totals[way]) if totals[way] else "–"]
        for way in kinds
        for kind, amount in kinds[way].most_common()
    ]
    curves = {"from clients to the server": "bytes_up_so_far", "from the server to clients": "bytes_down_so_far"}
    parts = _chart(summary, "Payload of all clients since the run began", curves=curves, show=size, show_tick=size, from_zero=True)
    by_kind = markup.table("Payload of all clients by kind", ["kind", "way", "bytes", "share of its way"], rows=rows, numbers_from=2)
    return markup.section("bytes", "Bytes", markup.element("div", parts + by_kind, class_="pair"))


def memory(summary: Summary) -> str:
    """Peak memory of every client's process."""
    known = [(name, row["peak_memory_bytes"]) for name, row in summary["clients"].items() if row["peak_memory_bytes"]]
    if not known:
        why = "Clients of a simulation share one process" if "simulation" in summary else "No client has reported yet"
        return markup.section("memory", "Client memory", markup.paragraph(f"{why}: there are no figures of single clients."))
    known.sort(key=lambda pair: (-pair[1], pair[0]))
    note = f", the {_MOST_BARS} largest of {len(known)}" if len(known) > _MOST_BARS else ""
    shown = bars(
        f"Peak resident memory of the whole process (VmHWM){note}", [(name, float(peak), size(peak)) for name, peak in known[:_MOST_BARS]]
    )
    own = {name: float(summary["clients"][name].get("peak_anonymous_bytes") or 0) for name, _ in known[:_MOST_BARS]}
    if any(own.values()):
        shown += bars("Of that without pages of files, which every machine needs", [(name, peak, size(peak)) for name, peak in own.items()])
    return markup.section("memory", "Client memory", shown)


def time_spent(summary: Summary) -> str:
    """Where the seconds of a round went."""
    rows = summary["rounds"]
    rest = [
        None if row.get("compute_seconds") is None else max(0.0, row["seconds"] - row["compute_seconds"] - row["upload_wait_seconds"])
        for row in rows
    ]
    curves = [
        Curve("computing", _column(summary, "compute_seconds")),
        Curve("waiting for uploads", _column(summary, "upload_wait_seconds")),
        Curve("everything else", rest),
        Curve("whole round", _column(summary, "seconds")),
    ]
    words = markup.paragraph(
        "Means over the clients of a round, as they report them. Computing: local steps without waits. Waiting for uploads: steps that stood still until an upload had left or was "
        "answered. Everything else: weights on the wire, other clients, the server's training, averaging, scoring and checkpoint."
    )
    return markup.section(
        "time",
        "Time",
        words,
        Chart("Seconds of each round", _rounds(summary), curves=curves, show=duration, show_tick=duration, from_zero=True).markup(),
    )


def losses(summary: Summary) -> str:
    """Members that were dropped, attempts that were abandoned, uploads that were refused."""
    parts = []
    for title, name, table in (
        ("Members dropped from a round", "reason", _dropped(summary)),
        (
            "Attempts abandoned and repeated",
            "reason",
            [[reason, count(n)] for reason, n in (summary.get("abandoned_attempts") or {}).items()],
        ),
        ("Uploads rejected by the gates", "reason", _rejected(summary)),
    ):
        if table:
            columns = [name, "times", "clients"][: len(table[0])]
            parts.append(markup.table(title, columns, rows=table))
    if summary.get("drops") is None:
        parts.append(
            markup.paragraph(
                "The run's summary does not say who was dropped: it is of an earlier version, or the ledger could not be read."
            )
        )
    elif not parts:
        parts.append(markup.paragraph("Nobody was dropped, no attempt was abandoned, no upload was rejected."))
    curves = {"took part": "cohort", "update taken": "updates"}
    return markup.section(
        "drops", "Drops", *parts, _chart(summary, "Clients of each round", curves=curves, show=count, show_tick=count, from_zero=True)
    )


def _dropped(summary: Summary) -> list[list[str]]:
    return [[reason, count(sum(by.values())), count(len(by))] for reason, by in (summary.get("drops") or {}).items()]


def _rejected(summary: Summary) -> list[list[str]]:
    totals: Counter[str] = Counter()
    clients: Counter[str] = Counter()
    for by_reason in (summary.get("rejected_uploads") or {}).values():
        totals.update(by_reason)
        clients.update(by_reason.keys())
    return [[reason, count(number), count(clients[reason])] for reason, number in totals.most_common()]


def clients(summary: Summary) -> str:
    """One row for each client."""
    drops: Counter[str] = Counter()
    for by in (summary.get("drops") or {}).values():
        drops.update(by)
    columns = ["client", "samples", "rounds", "peak memory", "sent", "received", "computing", "waiting for uploads", "in rounds", "dropped"]
    rows = [
        [
            name,
            count(row["examples"]),
            count(row["rounds_completed"]),
            size(row["peak_memory_bytes"]),
            size(sum(row["bytes_up"].values())),
            size(sum(row["bytes_down"].values())),
            duration(row.get("compute_seconds")),
            duration(row.get("upload_wait_seconds")),
            duration(row.get("round_seconds")),
            count(drops[name]) if summary.get("drops") is not None else "–",
        ]
        for name, row in summary["clients"].items()
    ]
    # A row may be of many that left long ago.
    number = sum(row.get("clients", 1) for row in summary["clients"].values())
    return markup.section("clients", "Clients", markup.table(f"All {number} clients", columns, rows=rows))


def plan(summary: Summary) -> str:
    """What was trained, how, and with which versions."""
    algorithm = {key: value for key, value in summary["algorithm"].items() if key != "plan"}
    parts = [
        _pairs("Plan of a client", summary["algorithm"]["plan"]),
        _pairs("Algorithm of the run", algorithm),
        _pairs("Model", summary["model"]),
        _pairs("Programs compared with the model", summary["parity"]),
        *(_pairs(f"Options [{name}]", values) for name, values in summary["configuration"].items() if isinstance(values, dict)),
        *([_pairs("Simulation", summary["simulation"])] if "simulation" in summary else []),
        _pairs("Versions", summary["versions"]),
    ]
    return markup.section("plan", "Plan and versions", markup.element("div", "".join(part for part in parts if part), class_="pair"))


def _pairs(title: str, values: dict[str, Any]) -> str:
    rows = [[key, plain(value)] for key, value in values.items() if value is not None]
    return markup.table(title, ["name", "value"], rows=rows, numbers_from=2) if rows else ""
