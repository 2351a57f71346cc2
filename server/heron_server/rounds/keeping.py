"""A payload that came either has a place in the round afterwards, or its file is deleted, whatever went wrong in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from heron_server.storage.spool import Spool, SpoolEntry


@dataclass
class Keep:
    """Whether a payload has a place in the round now."""

    is_taken_over: bool = False


@contextmanager
def kept_or_released(spool: Spool, entry: SpoolEntry | None) -> Iterator[Keep]:
    """Release a payload at the end unless it was taken over; there may be none."""
    keep = Keep()
    try:
        yield keep
    finally:
        if entry is not None and not keep.is_taken_over:
            spool.release(entry)
