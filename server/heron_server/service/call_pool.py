"""Who may hold a slot for a call: a bounded number at a time, in which whoever keeps the server waiting longest makes room for whoever comes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

_order = itertools.count()


class OpenCall:
    """A call from its headers until it has ended on the wire."""

    def __init__(self, peer: str, cancel: Callable[[], object], now: float) -> None:
        """Whose connection it is, and what ends it; it waits for its first message."""
        self.peer = peer
        self.cancel = cancel
        self.holder = peer
        """Whose share of its pool it takes: a connection's, a session's."""
        self.has_spoken = False
        self.is_members = False
        self.is_cancelled = False
        self.seen_overdue = -1
        """Which of its waits was too long when that was last looked at."""
        self.waits(now)

    def waits(self, now: float) -> None:
        """It is the other side's turn: to send a message or to take one."""
        self.waiting_since: float | None = now
        self.order = next(_order)

    def works(self) -> None:
        """It is the server's turn."""
        self.waiting_since = None


class PoolFullError(Exception):
    """Nobody in the pool can be asked to make room."""


class CallPool:
    """At most `capacity` calls, and of one holder at most `per_holder`. Not thread-safe: its owner has a lock."""

    def __init__(self, capacity: int, per_holder: int | None = None, is_endless: bool = False) -> None:
        """`is_endless` says that its calls never end by themselves, so that any of them may be ended."""
        self.capacity = capacity
        self._per_holder = per_holder or capacity
        self._is_endless = is_endless
        self._calls: dict[OpenCall, None] = {}
        self._shares: dict[str, dict[OpenCall, None]] = {}

    def __len__(self) -> int:
        """How many slots are taken."""
        return len(self._calls)

    def add(self, call: OpenCall) -> OpenCall | None:
        """Give a call a slot; returns the one that has to go for it, whose slot it is now.

        Raises:
            PoolFullError: the server itself is at work on all of them.

        """
        own = self._shares.get(call.holder, {})
        gone = None
        if len(own) >= self._per_holder:
            # One more than a connection may have is of a client that came back: its oldest is of the connection before.
            gone = min(own, key=lambda other: (other.waiting_since is None, other.order))
        elif len(self._calls) >= self.capacity:
            gone = self._dispensable()
        if gone is not None:
            self.remove(gone)
        self._calls[call] = None
        self._shares.setdefault(call.holder, {})[call] = None
        return gone

    def remove(self, call: OpenCall) -> None:
        """Take a slot back; safe to repeat."""
        if self._calls.pop(call, call) is None:
            share = self._shares[call.holder]
            del share[call]
            if not share:
                del self._shares[call.holder]

    def _dispensable(self) -> OpenCall:
        candidates = [call for call in self._calls if self._is_endless or call.waiting_since is not None]
        if not candidates:
            raise PoolFullError
        return min(candidates, key=lambda call: (-len(self._shares[call.holder]), call.order))
