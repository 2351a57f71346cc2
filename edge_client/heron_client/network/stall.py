"""Gives up streams on which nothing moves, while it is not this device's turn: the backstop where a connection lives and a stream does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from heron_common.errors import TransportError
from heron_common.process.clock import Clock
from heron_common.protocol.timing import LONGEST_STALL_SECONDS


class Progress:
    """What moved on one stream, and whether the other side is to move next."""

    def __init__(self, clock: Clock, cancel: Callable[[], None]) -> None:
        self._clock = clock
        self.cancel = cancel
        self.moved_at: float | None = clock.now()
        self.stalled = False

    def note(self) -> None:
        """Something moved; the other side is to move next."""
        self.moved_at = self._clock.now()

    def pause(self) -> None:
        """It is this device that is to move next, and it may take its time."""
        self.moved_at = None


class StallWatch:
    """Watches streams from a thread of its own, which ends a while after the last of them.

    The allowed time doubles with every stall and stays so: a network that is that slow would otherwise see the same bytes for ever.
    """

    def __init__(self, clock: Clock, stall_seconds: float) -> None:
        self._clock = clock
        self.stall_seconds = stall_seconds
        self._changed = threading.Condition()
        self._watched: set[Progress] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, cancel: Callable[[], None]) -> Iterator[Progress]:
        """Watch one stream while the context lasts; `cancel` ends it.

        Raises:
            TransportError: it stalled, in place of what its cancellation raised.

        """
        progress = Progress(self._clock, cancel)
        with self._changed:
            self._watched.add(progress)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stalls", daemon=True)
                self._thread.start()
        try:
            yield progress
        except Exception as exc:
            if progress.stalled:
                raise TransportError("nothing moved on a stream for too long, so it was given up") from exc
            raise
        finally:
            with self._changed:
                self._watched.discard(progress)

    def close(self) -> None:
        """End the thread at once; safe to repeat."""
        with self._changed:
            self._watched.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(self.stall_seconds / 4)
                if not self._watched:
                    self._thread = None
                    return
                late = [progress for progress in self._watched if self._is_late(progress)]
                if late:
                    self.stall_seconds = min(2 * self.stall_seconds, LONGEST_STALL_SECONDS)
            for progress in late:
                progress.cancel()

    def _is_late(self, progress: Progress) -> bool:
        since = progress.moved_at
        if since is None or progress.stalled or self._clock.now() - since < self.stall_seconds:
            return False
        progress.stalled = True
        return True
