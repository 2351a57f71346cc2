"""Attacked images above what the strongest attack on each cut makes of them. matplotlib is optional and imported only to draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.errors import ConfigurationError, StorageError

SUFFIXES = (".png", ".svg", ".pdf")

_IMAGES = 10


def check_picture(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse what cannot be drawn, before anything is attacked.

    Raises:
        ConfigurationError: samples are no images, the file's suffix is of no image, or matplotlib is not installed.

    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigurationError(
            f"--picture shows images of one channel or three, but samples here have the shape {'x'.join(map(str, shape))}: leave it out"
        )
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"--picture ends in {', '.join(SUFFIXES)}, not in {path.suffix!r}: name such a file")
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise ConfigurationError("--picture needs matplotlib, which is not installed here: pip install 'heron-sfl[plots]'") from exc


def draw(samples: npt.NDArray[Any], rows: Sequence[tuple[str, npt.NDArray[Any]]], path: Path) -> None:
    """Draw the first images of `samples` [n, c, h, w], values in [0, 1], above reconstructions of each cut, and write the image.

    Raises:
        StorageError: it cannot be written.

    """
    from matplotlib.figure import Figure

    shown = min(_IMAGES, len(samples))
    lines = [("samples", samples), *rows]
    # A figure of its own, without pyplot: no global state, no display, any thread.
    figure = Figure(figsize=(1.6 + 0.8 * shown, 0.5 + 0.85 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), shown, squeeze=False)
    for (name, images), axes in zip(lines, grid, strict=True):
        for image, place in zip(images[:shown], axes, strict=True):
            place.imshow(np.clip(image, 0, 1).transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=144)
    except OSError as exc:
        raise StorageError(f"cannot write {path} ({exc.strerror or exc}): choose another --picture") from exc
