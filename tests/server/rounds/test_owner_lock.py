"""The discipline of the owner's lock: what is slow under it is an error, and what two verbs decide is durable in their order."""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from heron_server.rounds.owner_lock import Discipline, LockDisciplineError, OwnerLock
from tests.conftest import DISCIPLINE
from tests.harness.polling import eventually

EVENT = threading.Event()
"""Made before: a lock that is made under the owner's belongs to a value that nobody else has."""


@pytest.fixture
def discipline() -> Discipline:
    """What watches this test process."""
    return DISCIPLINE


@pytest.mark.parametrize(
    "act",
    [
        lambda path, lock: logging.getLogger("heron_server").warning("slow"),
        lambda path, lock: path.write_text("slow"),
        lambda path, lock: path.unlink(missing_ok=True),
        lambda path, lock: lock.acquire(),
        lambda path, lock: EVENT.set(),
    ],
    ids=["log", "write", "delete", "lock", "event"],
)
def test_what_is_slow_under_the_lock_is_an_error(
    tmp_path: Path, discipline: Discipline, act: Callable[[Path, threading.Lock], object]
) -> None:
    owner, other = OwnerLock(), threading.Lock()
    with pytest.raises(LockDisciplineError), owner:
        act(tmp_path / "file", other)
    assert len(discipline.violations) == 1
    discipline.violations.clear()
    act(tmp_path / "file", other)
    assert discipline.violations == [], "outside the lock everything may be done"


def test_another_thread_may_do_what_it_likes_meanwhile(tmp_path: Path, discipline: Discipline) -> None:
    owner = OwnerLock()
    with owner:
        done = _thread.allocate_lock()
        done.acquire()
        _thread.start_new_thread(lambda: ((tmp_path / "file").write_text("x"), done.release()), ())
        done.acquire()
    assert discipline.violations == []


def test_a_condition_gives_the_lock_back_while_it_waits() -> None:
    owner = OwnerLock()
    changed = threading.Condition(owner)  # type: ignore[arg-type]
    seen: list[str] = []

    def wait() -> None:
        with owner:
            seen.append("waits")
            changed.wait(20)
            seen.append("woken")

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: seen, what="the thread to wait")
    with owner:
        changed.notify_all()
    waiting.join(20)
    assert seen == ["waits", "woken"]
