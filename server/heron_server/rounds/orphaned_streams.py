"""Streams that nothing waits for any more: they end by themselves, or are cancelled after a while, to free their threads and their room."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from heron_common.process.clock import Clock

STALLED_STREAM_SECONDS = 5.0
"""A stream whose round is over hears so with its next chunk; after so long it is cancelled."""


class OrphanedStreams:
    """Cancellations that are due some time after they were added. Needs no lock: each has a place of its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._orphans: dict[int, tuple[float, Callable[[], object]]] = {}
        self._places = itertools.count()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._orphans)

    def add(self, cancel: Callable[[], object]) -> int:
        """What a stream belongs to is over; return its place."""
        place = next(self._places)
        self._orphans[place] = (self._clock.now(), cancel)
        return place

    def cancel_stalled(self) -> None:
        """Cancel those that had their time."""
        now = self._clock.now()
        for place, (since, cancel) in self._orphans.copy().items():
            if now - since >= STALLED_STREAM_SECONDS and self._orphans.pop(place, None) is not None:
                cancel()
