"""Streams that nothing waits for any more: they end by themselves, or are cancelled after a while, to free their threads and their room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

from heron_common.clock import Clock

STALLED_STREAM_SECONDS = 5.0
"""A stream whose round is over hears so with its next chunk; after so long it is cancelled. So is one without a header."""


class OrphanedStreams:
    """Cancellations that are due some time after they were added. Hold the lock of `changed` around everything but `awaiting_header`."""

    def __init__(self, clock: Clock, changed: Condition) -> None:
        self._clock, self._changed = clock, changed
        self._orphans: list[tuple[float, Callable[[], None]]] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._orphans)

    def add(self, cancel: Callable[[], None]) -> None:
        """What a stream belongs to is over."""
        self._orphans.append((self._clock.now(), cancel))

    @contextmanager
    def awaiting_header(self, cancel: Callable[[], None]) -> Iterator[None]:
        """A stream has begun, and nobody knows whose it is until its header is there: it does not keep its thread for long."""
        with self._changed:
            begun = (self._clock.now(), cancel)
            self._orphans.append(begun)
        try:
            yield
        finally:
            with self._changed:
                self._orphans = [orphan for orphan in self._orphans if orphan is not begun]

    def cancel_stalled(self) -> None:
        """Cancel those that had their time."""
        now = self._clock.now()
        due = [cancel for since, cancel in self._orphans if now - since >= STALLED_STREAM_SECONDS]
        self._orphans = [(since, cancel) for since, cancel in self._orphans if now - since < STALLED_STREAM_SECONDS]
        for cancel in due:
            cancel()
