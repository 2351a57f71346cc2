"""Every run of a program goes through here: it is timed, another thread can end it, and what the runtime says of it becomes a sentence."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnxruntime

from heron_common.errors import Interrupted, ProgramError
from heron_common.exit_codes import ExitCode
from heron_common.process.clock import Clock, MonotonicClock
from heron_common.process.process_memory import AnonymousPeak

log = logging.getLogger(__name__)

LONGEST_RUN_SECONDS = 600.0
"""Of one micro-batch: seconds on the slowest devices. What takes longer was not made to end."""

GRACE_SECONDS = 10.0
"""The runtime looks for the wish to end between two operators; one that computes longer than this after it is left with the process."""

_LOOK_SECONDS = 0.5

_MEMORY_SECONDS = 0.02
"""From one look at memory to the next: it costs 30 microseconds, a run of a small program 150."""


class ProgramRuns:
    """The runs of one client's programs, one at a time."""

    def __init__(
        self, clock: Clock | None = None, longest_seconds: float = LONGEST_RUN_SECONDS, exit_process: Callable[[int], object] = os._exit
    ) -> None:
        self._clock = clock or MonotonicClock()
        self._longest = longest_seconds
        self._exit = exit_process
        self._options = onnxruntime.RunOptions()
        self.memory = AnonymousPeak()
        self._memory_seen: float = -math.inf
        self._began: float | None = None
        self._ended_at: float | None = None
        self._stopped = False

    def run(self, session: Any, binding: Any, what: str) -> None:
        """Run a program; releases the interpreter while it computes.

        Raises:
            Interrupted: `stop` was called, before or meanwhile.
            ProgramError: it took too long, or the runtime cannot compute it.

        """
        try:
            with self.timed():
                session.run_with_iobinding(binding, self._options)
        except Interrupted:
            raise
        except Exception as exc:
            if self._stopped:
                raise Interrupted("asked to stop") from exc
            if self._ended_at is not None:
                raise ProgramError(
                    f"{what} was ended after {self._longest:g} s for a single micro-batch: use a smaller front or micro-batch on the server"
                ) from exc
            reason = " ".join(str(exc).split())[:300]
            raise ProgramError(
                f"{what} cannot be run by onnxruntime {onnxruntime.__version__} on this device ({reason}): restart the server, or update onnxruntime here"
            ) from exc

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what is done here as a run, so that the process can be ended if it does not end; the runtime also computes where it loads a program.

        Raises:
            Interrupted: `stop` was called before.

        """
        if self._stopped:
            raise Interrupted("asked to stop")
        self._began = self._clock.now()
        try:
            yield
        finally:
            self._began = None
            self._look_at_memory()

    def stop(self) -> None:
        """End the run under way as soon as the runtime looks, and begin no other; from any thread."""
        self._stopped = True
        self._end()

    def look(self) -> None:
        """End a run that takes too long, and the process where that does not help; called every now and then by a thread that does not run programs."""
        now, began = self._clock.now(), self._began
        if began is None:
            return
        if self._ended_at is None:
            if now - began > self._longest:
                self._end()
        elif now - max(began, self._ended_at) > GRACE_SECONDS:
            log.error("an operator of a program does not end, so this process does", extra={"seconds": round(now - began, 1)})
            self._exit(ExitCode.FORCED if self._stopped else ExitCode.PROGRAM)

    @contextmanager
    def watched(self, stop: threading.Event, on_stop: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Look after the runs from a thread of their own; once `stop` is set, end them and call `on_stop`, once."""
        over = threading.Event()

        def watch() -> None:
            told = False
            while not over.is_set():
                if stop.wait(_LOOK_SECONDS) and not told:
                    told = True
                    self.stop()
                    on_stop()
                elif told:
                    over.wait(_LOOK_SECONDS)
                self.look()

        watcher = threading.Thread(target=watch, name="stop", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()

    def _look_at_memory(self) -> None:
        now = self._clock.now()
        if now - self._memory_seen >= _MEMORY_SECONDS:
            self._memory_seen = now
            self.memory.note()

    def _end(self) -> None:
        self._ended_at = self._clock.now()
        self._options.terminate = True
