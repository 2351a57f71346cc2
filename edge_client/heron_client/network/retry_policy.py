"""When a failed call is tried again: one policy for control calls, uploads and updates."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from random import Random

from heron_common.error_catalog import CATALOG, ErrorCode
from heron_common.errors import HeronError, Interrupted, RefusedError, TransportError
from heron_common.process.clock import Clock
from heron_common.process.retry import BackoffPolicy
from heron_common.terminal.log_setup import TOLD

log = logging.getLogger(__name__)

_PACING = {ErrorCode.TOO_FAR_AHEAD, ErrorCode.SPOOL_FULL, ErrorCode.STREAM_BUSY}
"""Refusals that only mean "later" are the normal course of things and are not logged."""


Diagnose = Callable[[], str | None]
"""Finds out why the server cannot be reached, in one sentence, or cannot tell."""

DIAGNOSE_AFTER_FAILURES = 3
"""A server that restarts is back by then, or refuses connections, which gRPC's own words say."""


Recover = Callable[[HeronError], bool]
"""Mends what made a call fail, if it can, and returns whether to make the call again at once."""

WAKE_SECONDS = 0.2
"""How soon one that waits for its next attempt notices that another thread has reached the server."""


def _no_diagnosis() -> None:
    return None


def _nothing_recovers(_: HeronError) -> bool:
    return False


class RetryPolicy:
    """Backs off on transport failures and retryable refusals until asked to stop, or until the server was out of reach for too long."""

    def __init__(
        self,
        stop: threading.Event,
        clock: Clock,
        random: Random,
        *,
        give_up_after_seconds: float = 0.0,
        backoff: BackoffPolicy | None = None,
        diagnose: Diagnose | None = None,
    ) -> None:
        """`give_up_after_seconds` of 0 means never; `diagnose` is asked after repeated failures in a row."""
        self._stop = stop
        self._clock = clock
        self._random = random
        self._give_up_after = give_up_after_seconds
        self._backoff = backoff or BackoffPolicy()
        self._diagnose = diagnose or _no_diagnosis
        self._woken = 0

    def begin(self, what: str, recover: Recover | None = None) -> Attempts:
        """Start counting for one call; `what` completes "could not ..." in the log."""
        return Attempts(self, what, recover or _nothing_recovers)

    def check(self) -> None:
        """Raise Interrupted if this process was asked to stop."""
        self.pause(0.0)

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until this process is asked to stop; raises Interrupted then."""
        if self._stop.wait(seconds):
            raise Interrupted("asked to stop")

    def wake(self) -> None:
        """The server answers again: whoever waits for its next attempt makes it now."""
        self._woken += 1

    def pause_before_attempt(self, seconds: float) -> None:
        """Wait like `pause`, but not longer than until somebody heard of the server again."""
        woken, left = self._woken, seconds
        while left > 0 and self._woken == woken:
            self.pause(min(left, WAKE_SECONDS))
            left -= WAKE_SECONDS


SAY_AGAIN_SECONDS = 60.0
"""A server that is still starting refuses dozens of times for one reason, which is one line; a lasting trouble is said again once a minute."""


class Attempts:
    """The failures of one call."""

    def __init__(self, policy: RetryPolicy, what: str, recover: Recover) -> None:
        self._policy = policy
        self._what = what
        self._recover = recover
        self._begin()

    def _begin(self) -> None:
        self._delays = self._policy._backoff.delays(self._policy._random)
        self._started = self._policy._clock.now()
        self._unreachable = 0
        self._diagnose_at = DIAGNOSE_AFTER_FAILURES
        self._told: set[str] = set()
        self._told_since = self._started

    def wait(self, error: HeronError) -> None:
        """Wait until the next attempt makes sense: not at all where what made the last one fail was mended.

        Raises:
            Interrupted: this process was asked to stop.
            HeronError: `error` itself, if it is a refusal for good or the server was out of reach for too long.

        """
        policy = self._policy
        policy.check()
        if self._recover(error):
            # The server is there again, so it counts as out of reach from its next failure on.
            self._begin()
            return
        delay, now = next(self._delays), policy._clock.now()
        if isinstance(error, RefusedError):
            if not CATALOG[error.code].retryable:
                raise error
            # Never sooner than the server says; not all together either, for it tells many the same.
            delay = error.retry_after_seconds * policy._random.uniform(1.0, 1.25) if error.retry_after_seconds else delay
        elif 0 < policy._give_up_after <= now - self._started:
            found = policy._diagnose()
            raise TransportError(f"{error}; {found}") if found else error
        else:
            self._look_into_it()
        if not (isinstance(error, RefusedError) and error.code in _PACING):
            self._tell(str(error), delay, now=now)
        policy.pause_before_attempt(delay)

    def _tell(self, reason: str, delay: float, *, now: float) -> None:
        if now - self._told_since >= SAY_AGAIN_SECONDS:
            self._told.clear()
            self._told_since = now
        is_news = reason not in self._told
        self._told.add(reason)
        fields = {"reason": reason, "retry_seconds": round(delay, 2), TOLD: f"could not {self._what} yet, trying again: {reason}"}
        log.log(logging.WARNING if is_news else logging.DEBUG, f"could not {self._what}, trying again", extra=fields)

    def _look_into_it(self) -> None:
        """Say what is wrong, if that can be known, at the third failure in a row and then ever more seldom."""
        self._unreachable += 1
        if self._unreachable >= self._diagnose_at:
            self._diagnose_at *= 4
            if found := self._policy._diagnose():
                log.error(found)
