"""Says when the process comes near its limit of open files: every connection takes one, also one on which nobody ever says anything."""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import Callable
from pathlib import Path

from heron_common.process.clock import Clock
from heron_server.service.seldom import SeldomWarnings

log = logging.getLogger(__name__)

WARN_AT = 0.8
"""The share of the limit that is worth a line: beyond it a round's files and honest connections may find no room soon."""

LOOK_SECONDS = 1.0

CONNECTIONS_SHARE = 0.9
"""The share that connections may have: a further one is closed at once, so that spool, ledger and checkpoints open their files whoever is there."""

_NEAR = "nearly all files that this process may have open are: connections that stay idle take them; raise the limit (LimitNOFILE, ulimit -n) or keep strangers out"


def open_descriptors() -> int | None:
    """Return how many descriptors this process has open; None where the system does not tell."""
    for folder in (Path("/proc/self/fd"), Path("/dev/fd")):
        try:
            return sum(1 for _ in folder.iterdir())
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                # None is left to look with.
                return descriptor_limit()
    return None


def most_connections() -> int:
    """Return how many connections leave room for a run's own files; as many as gRPC counts where files have no limit."""
    return int(CONNECTIONS_SHARE * descriptor_limit()) or (1 << 31) - 1


def descriptor_limit() -> int:
    """Return how many it may have; 0 for no limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 0 if soft == resource.RLIM_INFINITY else soft


class DescriptorWatch:
    """Looks once a second at most, and warns once a minute at most."""

    def __init__(
        self, clock: Clock, count: Callable[[], int | None] = open_descriptors, limit: Callable[[], int] = descriptor_limit
    ) -> None:
        self._clock = clock
        self._count, self._limit = count, limit
        self._next_look = clock.now()
        self._warnings = SeldomWarnings(log, clock.now)

    def look(self) -> None:
        """Warn if it is time to; call as often as you like."""
        now = self._clock.now()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        limit, count = self._limit(), self._count()
        if count is not None and limit and count >= WARN_AT * limit:
            self._warnings.warn(_NEAR, open=count, limit=limit)
