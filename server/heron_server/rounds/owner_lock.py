"""The lock of the round's owner, and the debug mode that fails whoever does more under it than change the round's state."""

from __future__ import annotations

import _thread
import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

DISCIPLINE_VARIABLE = "HERON_LOCK_DISCIPLINE"
"""Set to `exit`, a process that breaks the discipline says so and ends; its tests set it."""

_FILE_EVENTS = frozenset(
    {"open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir", "os.scandir", "sqlite3.connect"}
)

_holders: set[int] = set()


class LockDisciplineError(AssertionError):
    """A log record, a file operation or another lock under the owner's lock: whoever is slow there makes every client wait."""


class OwnerLock:
    """Not re-entrant; conditions may be built on it."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._holder = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock."""
        if not self._lock.acquire(blocking, timeout):
            return False
        self._holder = _thread.get_ident()
        _holders.add(self._holder)
        return True

    def release(self) -> None:
        """Give the lock back."""
        _holders.discard(self._holder)
        self._holder = 0
        self._lock.release()

    def _is_owned(self) -> bool:
        # What `threading.Condition` asks.
        return self._holder == _thread.get_ident()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class Discipline:
    """What was done under an owner's lock that must not be; empty as it should be."""

    def __init__(self, exits: bool) -> None:
        self.violations: list[str] = []
        self._exits = exits
        self._collecting: set[int] = set()
        """Threads whose garbage is being collected: what finalisers do is nobody's choice here."""
        gc.callbacks.append(self._collect)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """For a test that copies files at a crash point, which may lie under the lock."""
        ident = _thread.get_ident()
        held = ident in _holders
        _holders.discard(ident)
        try:
            yield
        finally:
            if held:
                _holders.add(ident)

    def _collect(self, phase: str, _info: object) -> None:
        (self._collecting.add if phase == "start" else self._collecting.discard)(_thread.get_ident())

    def check(self, what: str) -> None:
        """Raise LockDisciplineError if this thread holds an owner's lock."""
        ident = _thread.get_ident()
        if ident not in _holders or ident in self._collecting:
            return
        # What reports it may open files and log.
        _holders.discard(ident)
        self.violations.append(what)
        if self._exits:
            os.write(2, f"under the owner's lock: {what}\n".encode())
            os._exit(70)
        raise LockDisciplineError(f"under the owner's lock: {what}")


def install_discipline(exits: bool = False) -> Discipline:
    """Watch this process from now on: log records, files, and locks of Python's that are made later. It cannot be undone."""
    discipline = Discipline(exits)
    make_record = logging.getLogRecordFactory()

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        discipline.check("a log record")
        return make_record(*arguments, **named)

    def audit(event: str, _arguments: Any) -> None:
        if event in _FILE_EVENTS:
            discipline.check(f"a file operation ({event})")

    def checked(make: Any) -> Any:
        return lambda: _CheckedLock(make(), discipline)

    logging.setLogRecordFactory(record)
    sys.addaudithook(audit)
    threading.Lock, threading.RLock = checked(threading.Lock), checked(threading.RLock)
    return discipline


class _CheckedLock:
    """A lock of Python's that does not let itself be taken under an owner's lock."""

    def __init__(self, lock: Any, discipline: Discipline) -> None:
        self._lock = lock
        self._discipline = discipline
        # One that was made there is of a value that nobody else has yet, such as a generator of random bits.
        self._is_private = _thread.get_ident() in _holders

    def acquire(self, *arguments: Any, **named: Any) -> bool:
        if not self._is_private:
            self._discipline.check("another lock")
        taken: bool = self._lock.acquire(*arguments, **named)
        return taken

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


if os.environ.get(DISCIPLINE_VARIABLE) == "exit":
    install_discipline(exits=True)
