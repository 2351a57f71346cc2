"""Signals only record and set: the first asks to stop, the second forces. Handlers are put back afterwards.

Python runs a handler between two steps of the main thread, which may compute in a library for minutes; what is written to the wakeup descriptor is there
at once, and a thread reads it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from heron_common.exit_codes import ExitCode

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM or SIGINT, whatever the main thread is at; exit with FORCED on the second one. Does nothing off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    here, there = _Heard(stop), _Heard(stop)
    old = {number: signal.signal(number, here) for number in STOP_SIGNALS}
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, there), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal end the process at once, for what holds nothing that would have to be put away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def ending_within(seconds: float, stop: threading.Event) -> Iterator[None]:
    """End the process, as one that was stopped on request, so long after `stop` is set: for work that nobody can interrupt and that leaves nothing half done."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if stop.wait(_LOOK_SECONDS) and not over.wait(seconds):
                log.warning("what is under way does not end, so this process does", extra={"waited_seconds": seconds})
                os._exit(ExitCode.OK)

    watcher = threading.Thread(target=watch, name="stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class _Heard:
    """What one of the two threads has heard: both hear of every signal, the main thread perhaps later."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._asked = False

    def __call__(self, number: int, _frame: FrameType | None = None) -> None:
        if number in STOP_SIGNALS:
            if self._asked:
                os._exit(ExitCode.FORCED)
            self._asked = True
            self._stop.set()


def _watch(reader: int, heard: _Heard) -> None:
    while numbers := os.read(reader, 64):
        for number in numbers:
            heard(number)
