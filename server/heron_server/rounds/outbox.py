"""What the owner's verbs leave to be done once its lock is free, in the order in which they happened.

Ledger entries become durable before anything leaves the server that depends on them; payloads are deleted after the entries that give them up;
log lines, metrics and cancellations follow as soon as the lock is free.
"""

from __future__ import annotations

import _thread
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from heron_common.errors import StorageError
from heron_server.storage.ledger import Ledger
from heron_server.storage.spool import Spool, SpoolEntry

log = logging.getLogger("heron_server.rounds")


class Outbox:
    """Filled under the owner's lock by appending alone; emptied outside it, by one thread at a time."""

    def __init__(self, ledger: Ledger, spool: Spool) -> None:
        self.ledger = ledger
        """Writing an entry only queues it."""
        self._spool = spool
        self._notes: deque[Callable[[], None]] = deque()
        self._deletions: deque[tuple[int, SpoolEntry | str]] = deque()
        """Each with how many ledger entries came before it."""
        self._noting, self._deleting = _thread.allocate_lock(), _thread.allocate_lock()

    # Under the owner's lock.

    def then(self, act: Callable[[], None]) -> None:
        """Do this once the lock is free."""
        self._notes.append(act)

    def info(self, message: str, **fields: Any) -> None:
        """Log a line."""
        self.then(lambda: log.info(message, extra=fields))

    def warn(self, message: str, **fields: Any) -> None:
        """Log a warning."""
        self.then(lambda: log.warning(message, extra=fields))

    def delete(self, payloads: Iterable[SpoolEntry | str]) -> None:
        """Delete payloads, those of an earlier process by name, once the entries before this are durable: a name in the ledger always has its file."""
        after = self.ledger.num_written
        self._deletions.extend((after, payload) for payload in payloads)

    # Outside it.

    def run_notes(self) -> None:
        """Carry out what waits for nothing but the lock; returns at once if another thread is about it already."""
        while self._notes and self._noting.acquire(blocking=False):
            try:
                while self._notes:
                    self._notes.popleft()()
            finally:
                self._noting.release()

    def flush(self) -> None:
        """Return when every ledger entry written before is durable.

        Raises:
            StorageError: the disk refuses; entries stay where they are, and the next call tries again.

        """
        self.run_notes()
        self.ledger.sync()

    def delete_given_up(self, at_most: int | None = None) -> None:
        """Delete what the ledger does not name any more, oldest first; off the way of requests, for it takes a system call a file."""
        if not self._deletions or not self._deleting.acquire(blocking=False):
            return
        try:
            if self.ledger.num_durable < self._deletions[0][0]:
                self.ledger.sync()
            left = len(self._deletions) if at_most is None else at_most
            while left and self._deletions and self._deletions[0][0] <= self.ledger.num_durable:
                left -= 1
                _, payload = self._deletions.popleft()
                if isinstance(payload, SpoolEntry):
                    self._spool.release(payload)
                else:
                    self._spool.discard([payload])
        except StorageError as exc:
            log.error(str(exc))
        finally:
            self._deleting.release()
