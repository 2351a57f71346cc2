"""A run that trains in the background: built by whoever calls, then watched by a thread of its own, round by round."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from heron_common.terminal.argument_names import spoken_in_python
from heron_server.summary import RoundRecord

log = logging.getLogger(__name__)

OnRound = Callable[[RoundRecord], object]
"""Called with each finished round, on the thread of the run."""


class Engine(Protocol):
    """What trains: a context that builds on entering; `rounds` yields until the end."""

    def __enter__(self) -> Engine:
        """Build; raises HeronError."""
        ...

    def __exit__(self, *_: object) -> None:
        """End in order."""
        ...

    @property
    def directory(self) -> Path:
        """Where the run's files are."""
        ...

    def records(self) -> tuple[RoundRecord, ...]:
        """Return every finished round."""
        ...

    def rounds(self) -> Iterator[RoundRecord]:
        """Yield each round as it is finished."""
        ...


class Training:
    """One engine and its thread. What goes wrong is raised wherever somebody waits."""

    def __init__(self, engine: Engine, stop: threading.Event, on_round: OnRound | None) -> None:
        """Build, on the caller's thread, and begin to train.

        Raises:
            HeronError: options, data, model, a program or the disk stand in the way.

        """
        self._engine, self._stop, self._on_round = engine, stop, on_round
        self._changed = threading.Condition()
        self._told: list[RoundRecord] = []
        self._failure: BaseException | None = None
        self._has_ended = False
        with ExitStack() as stack, spoken_in_python():
            stack.enter_context(_threads_kept())
            # Whoever calls may have gradients off.
            with torch.inference_mode(False), torch.enable_grad():
                stack.enter_context(engine)
            self._stack = stack.pop_all()
        self.directory = engine.directory
        self._thread = threading.Thread(target=self._run, name="heron run", daemon=True)
        with _LOCK:
            _RUNNING.add(self)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether nothing trains any more."""
        return self._has_ended

    def records(self) -> tuple[RoundRecord, ...]:
        """Return every finished round, those of earlier processes included."""
        return self._engine.records()

    def record(self, place: int) -> RoundRecord | None:
        """Return the round at this place of those that are trained here, once it is finished; None if there is none because all has ended.

        Raises:
            HeronError: the run failed.

        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._told) > place or self._has_ended)
            if len(self._told) > place:
                return self._told[place]
        self.raise_failure()
        return None

    def wait(self) -> None:
        """Return once all has ended; an interrupt ends the run in order first.

        Raises:
            HeronError: the run failed.

        """
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self.stop()
            raise
        self.raise_failure()

    def stop(self) -> None:
        """Ask the run to end, so that it can be resumed, and wait until it has; from a callback only ask. Safe to repeat."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def raise_failure(self) -> None:
        """Raise what ended the run, if that was no good end."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with self._stack, spoken_in_python():
                for record in self._engine.rounds():
                    with self._changed:
                        self._told.append(record)
                        self._changed.notify_all()
                    if self._on_round is not None:
                        self._on_round(record)
        except BaseException as exc:
            self._failure = exc
        finally:
            with _LOCK:
                _RUNNING.discard(self)
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()


_LOCK = threading.Lock()
_RUNNING: set[Training] = set()
"""Nobody need keep a run for it to go on; when the process ends each is ended in order."""


def _end_all() -> None:
    with _LOCK:
        running = list(_RUNNING)
    for training in running:
        log.warning(f"the process ends, so the run in {training.directory} stops before its end: call wait() to let it finish")
        training.stop()


atexit.register(_end_all)


class _Threads:
    """How many threads torch had before the first of several runs set its own number."""

    def __init__(self) -> None:
        self.users = 0
        self.before = 0


_THREADS = _Threads()


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Give torch its number of threads back after the last run that changed it."""
    with _LOCK:
        if _THREADS.users == 0:
            _THREADS.before = torch.get_num_threads()
        _THREADS.users += 1
    try:
        yield
    finally:
        with _LOCK:
            _THREADS.users -= 1
            if _THREADS.users == 0:
                torch.set_num_threads(_THREADS.before)
