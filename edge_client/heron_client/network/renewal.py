"""A new session inside a round: a server that restarted knows the round, but not the session; the client goes on where it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from heron_common.error_catalog import ErrorCode
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.protocol.messages import Membership

log = logging.getLogger(__name__)


class RunChanged(HeronError):  # noqa: N818 - nothing went wrong here
    """The server that answers now has another run or other programs: what this client was doing is over."""


class Renewal:
    """Opens a new session for a client at work, once for all threads that find the old one gone."""

    def __init__(
        self,
        probe: Callable[[], object],
        join: Callable[[], Membership],
        *,
        pause: Callable[[], None],
        on_renewed: Callable[[], None] = lambda: None,
    ) -> None:
        """`probe` makes a small call in the present session, `join` opens a new one, `pause` waits before a join, longer each time.

        `on_renewed` wakes those that wait to send something again: a pause that began while the server was away would keep the round waiting.
        """
        self._probe = probe
        self._join = join
        self._pause = pause
        self._on_renewed = on_renewed
        self._lock = threading.Lock()
        self._membership: Membership | None = None

    def begin(self, membership: Membership) -> None:
        """Note what the client joined; a renewed session has to be of the same."""
        self._membership = membership

    def after(self, error: HeronError) -> bool:
        """Open a new session if that is what the error of a call asks for; return whether the call should simply be made again.

        Raises:
            RunChanged: the server has another run or other programs.
            RefusedError: it refuses this client for good.

        """
        if not _asks_to_join(error):
            return False
        with self._lock:
            try:
                self._renew()
            except TransportError as exc:
                log.warning("could not join again inside a round, trying again", extra={"reason": str(exc)})
        return True

    def _renew(self) -> None:
        try:
            self._probe()
        except RefusedError as exc:
            if not _asks_to_join(exc):
                return
        else:
            # Another thread was here before.
            return
        self._pause()
        renewed, known = self._join(), self._membership
        # How many rounds there are is the operator's to change; nothing that is under way depends on it.
        if known is None or replace(renewed, session=known.session, num_rounds=known.num_rounds) != known:
            raise RunChanged("the server that answers now has another run or other programs")
        log.info("joined again inside a round", extra={"run_id": renewed.run_id})
        self._on_renewed()


def _asks_to_join(error: HeronError) -> bool:
    return isinstance(error, RefusedError) and error.code is ErrorCode.SESSION_UNKNOWN
