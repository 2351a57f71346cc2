"""docs/results/ingest.md from ingest.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_report(document: dict[str, Any], path: Path) -> None:
    """Write the Markdown document."""
    path.write_text("\n".join(_lines(document)) + "\n", encoding="utf-8")


def _lines(document: dict[str, Any]) -> list[str]:
    small: list[Row] = document["small"]
    large: list[Row] = document["large"]
    bare = {row["clients"]: row for row in small if row["server"] == "bare"}
    return [
        "# What receiving costs",
        "",
        f"Written by `{document['command']}` from `ingest.json`: one run, server and load generator on the same two cores, over loopback.",
        "",
        "- **bare** is a Python gRPC server that digests streams and answers asks, and does nothing else: 40 uploads of four messages and 200 asks a client.",
        "- **heron** is `heron-server --preset frozen` with one round; its clients are honest, ask when they are told to, and compute nothing. An upload has 8.7 kB.",
        "- Processor seconds are of the server's process without its start. The thread that trains has its own column and is not among them.",
        "- *p99 ask* is what the load generator measures, its own queue included; a *bystander* asks ten times a second from a process of its own.",
        "- Compare rows, not runs: seconds on a shared machine are noise.",
        "",
        "| server | clients | uploads | asks | most by one | cpu s | kernel s | ratio | trainer s | round s | p99 ask s | bystander | p99 upload s | peak MB | threads | errors |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *[_small(row, bare.get(row["clients"])) for row in small],
        "",
        "## Large uploads",
        "",
        "A batch of 64 rows of 64x32x32 floats (16.8 MB), milliseconds of processor time per MB, from the client's array to the server's tensor; same size of chunks.",
        "",
        "| server | client ms/MB | server ms/MB | client ratio | server ratio |",
        "|---|---|---|---|---|",
        *[_large(row, large[0]) for row in large],
    ]


def _small(row: Row, bare: Row | None) -> str:
    calls = row.get("calls", {})
    ratio = f"{row['processor_seconds'] / bare['processor_seconds']:.2f}" if bare else "-"
    errors = sum(row.get("errors", {}).values())
    cells = [
        row["server"],
        row["clients"],
        row["uploads"],
        row["asks"],
        row.get("most_asks", "-"),
        row["processor_seconds"],
        row["kernel_seconds"],
        ratio,
        row["trainer_seconds"],
        f"{row['round_seconds']:.1f}" if "round_seconds" in row else "-",
        f"{calls['ask']['p99']:.2f}" if calls else "-",
        f"{row['bystander']['p99']:.2f}" if row.get("bystander") else "-",
        f"{calls['upload']['p99']:.2f}" if calls else "-",
        row["peak_mb"],
        row["threads"],
        errors,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _large(row: Row, bare: Row) -> str:
    client, server = row["client_ms_per_mb"], row["server_ms_per_mb"]
    ratios = [f"{client / bare['client_ms_per_mb']:.2f}", f"{server / bare['server_ms_per_mb']:.2f}"]
    return f"| {row['server']} | {client:.2f} | {server:.2f} | {' | '.join(ratios)} |"
