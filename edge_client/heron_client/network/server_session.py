"""The session that a client has at the server: opened, opened again when the server lost it, and every call in it tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TypeVar

from heron_client.network.renewal import Renewal
from heron_client.network.retry_policy import RetryPolicy
from heron_client.network.transport import Transport
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.ids import RoundReference
from heron_common.process.retry import BackoffPolicy
from heron_common.protocol.messages import Membership

log = logging.getLogger(__name__)

T = TypeVar("T")


class ServerSession:
    """While a round is trained, a session that the server no longer knows is renewed; outside a round the caller joins again from the beginning."""

    def __init__(
        self,
        transport: Transport,
        retry_policy: RetryPolicy,
        random: Random,
        *,
        open_session: Callable[[], Membership],
        on_lost: Callable[[], None],
    ) -> None:
        """`open_session` makes the call that joins; `on_lost` is told each time that the server does not know this session."""
        self._transport = transport
        self._retry_policy = retry_policy
        self._random = random
        self._open_session = open_session
        self._on_lost = on_lost
        self._training: RoundReference | None = None
        self._renewal = Renewal(self._probe, open_session, pause=self.pause_before_join, on_renewed=retry_policy.wake)
        self.took_part()

    def join(self) -> Membership:
        """Open a session; raises as `call` does."""
        membership = self.call(self._open_session, "join")
        self._renewal.begin(membership)
        return membership

    def pause_before_join(self) -> None:
        """Two devices with one identity end each other's sessions in turn: without a growing pause they would do nothing else."""
        delay = next(self._rejoin_delays)
        log.warning("the server does not know this session, joining again", extra={"retry_seconds": round(delay, 2)})
        self._on_lost()
        self._retry_policy.pause(delay)

    def took_part(self) -> None:
        """A round was taken part in to its end: the next session that is lost is the first of its kind."""
        self._rejoin_delays = BackoffPolicy().delays(self._random)

    @contextmanager
    def training(self, reference: RoundReference) -> Iterator[None]:
        """Renew the session where it is lost while the context lasts, for the round goes on."""
        self._training = reference
        try:
            yield
        finally:
            self._training = None

    def call(self, call: Callable[[], T], what: str) -> T:
        """Call until it succeeds; `what` completes "could not ..." in the log.

        Raises:
            Interrupted: this process was asked to stop.
            RefusedError: the server refuses the call for good.
            TransportError: the server was out of reach for longer than the retry policy allows.
            RunChanged: the session was lost inside a round, and the server that answers now has another run.

        """
        attempts = self._retry_policy.begin(what, self.recover)
        while True:
            self._retry_policy.check()
            try:
                return call()
            except (TransportError, RefusedError) as exc:
                attempts.wait(exc)

    def recover(self, error: HeronError) -> bool:
        """Renew the session if that is what an error inside a round asks for; return whether the call should be made again at once."""
        return self._training is not None and self._renewal.after(error)

    def _probe(self) -> None:
        if self._training is not None:
            self._transport.next_step(self._training)
