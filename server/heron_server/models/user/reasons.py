"""What went wrong in a user's own code, as the end of a sentence."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path

import torch

_NOT_THE_USERS = (torch.__path__[0], str(Path(__file__).parents[2]), "<")
"""How the files begin whose lines are no help to a user."""


class LostInCaptureError(Exception):
    """A forward does what a graph of it would lose; the text ends a sentence that begins with 'it'."""


def reason_of(exc: BaseException) -> str:
    """Return what went wrong and in which line of the user's own code, as the end of a sentence that begins with 'it'."""
    first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
    what = f"fails there with {type(exc).__name__}: {first}"
    if isinstance(exc, LostInCaptureError):
        what = first
    if "control flow" in first or "data-dependent" in first.lower() or "_local_scalar_dense" in first or "aten.nonzero" in first:
        what = "branches on the values of the data"
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if not frame.filename.startswith(_NOT_THE_USERS)]
    if not frames:
        return what
    line = frames[-1].line or linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
    return f"{what} ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {line})"
