"""Accuracy and loss by round as a picture that notebooks show."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from heron_cli.simulation.plots import SUFFIXES, draw_rounds, rounds_figure
from heron_common.errors import ConfigurationError

_NOTEBOOK_DOTS_PER_INCH = 72
"""A picture of some 20 kB."""


class Curves:
    """A run's curves: notebooks show them, `save` writes a file, and `figure` is matplotlib's own."""

    def __init__(self, summary: dict[str, Any]) -> None:
        """Draw a summary.

        Raises:
            PlotUnavailable: matplotlib is not installed.

        """
        self._summary = summary
        self.figure = rounds_figure(summary)

    def save(self, path: Path | str) -> Path:
        """Write a .png, .svg or .pdf and return where it is.

        Raises:
            ConfigurationError: it would be another kind of file.
            StorageError: it cannot be written.

        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ConfigurationError(f"a picture is a file that ends in {', '.join(SUFFIXES)}, not {str(path)!r}")
        draw_rounds(self._summary, path)
        return path

    def _repr_png_(self) -> bytes:
        written = BytesIO()
        self.figure.savefig(written, format="png", dpi=_NOTEBOOK_DOTS_PER_INCH)
        return written.getvalue()
