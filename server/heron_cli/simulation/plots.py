"""Curves of a run as an image: accuracy and loss by round. matplotlib is optional and imported only to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heron_common.errors import HeronError, StorageError

SUFFIXES = (".png", ".svg", ".pdf")

WITHOUT_MATPLOTLIB = "no plot: it needs matplotlib, which is not installed here; pip install 'heron-sfl[plots]' gets it"


class PlotUnavailable(HeronError):  # noqa: N818 - an optional part is missing, nothing failed
    """matplotlib is not installed."""


def draw_rounds(summary: dict[str, Any], path: Path) -> None:
    """Draw the rounds of a summary and write the image, whose format is the path's suffix.

    Raises:
        PlotUnavailable: matplotlib is not installed.
        StorageError: the image cannot be written.

    """
    figure = rounds_figure(summary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=144)
    except OSError as exc:
        raise StorageError(f"cannot write {path} ({exc.strerror or exc}): choose another --plot") from exc


def rounds_figure(summary: dict[str, Any]) -> Any:
    """Return the curves of a summary as a figure of matplotlib.

    Raises:
        PlotUnavailable: matplotlib is not installed.

    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError as exc:
        raise PlotUnavailable(WITHOUT_MATPLOTLIB) from exc
    # A figure of its own, without pyplot: no global state, no display, any thread.
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    rounds = [row["round_index"] + 1 for row in summary["rounds"]]
    curves = (
        (accuracy, "test_accuracy", "test accuracy", "C0"),
        (loss, "test_loss", "test loss", "C0"),
        (loss, "server_loss", "server loss", "C1"),
        (loss, "local_loss", "clients' local loss", "C2"),
    )
    for axes, name, label, colour in curves:
        values = [row.get(name) for row in summary["rounds"]]
        points = [(index, value) for index, value in zip(rounds, values, strict=True) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=colour, marker="." if len(points) < 40 else None)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (accuracy, loss):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle(_title(summary))
    return figure


def _title(summary: dict[str, Any]) -> str:
    simulation = summary.get("simulation")
    if simulation is None:
        return str(summary["preset"])
    share = f", {simulation['cohort_size']} a round" if simulation["participation"] < 1 else ""
    return f"{summary['preset']} on {simulation['data']}, {simulation['clients']} clients{share}, {simulation['partition']}"
