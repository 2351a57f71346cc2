"""Tells the server that a training client is alive, and tells the training thread when its round is over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from heron_client.network.transport import Transport
from heron_common.error_catalog import ErrorCode
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.ids import RoundReference
from heron_common.protocol.messages import Assignment, Finished, UploadLoss

log = logging.getLogger(__name__)


class Heartbeat:
    """Calls the server every `period_seconds` from a thread of its own until stopped."""

    def __init__(
        self,
        transport: Transport,
        training: RoundReference,
        *,
        period_seconds: float,
        round_over: threading.Event,
        on_losses: Callable[[tuple[UploadLoss, ...]], None],
        recover: Callable[[HeronError], bool] = lambda _: False,
    ) -> None:
        """`recover` opens a new session where a server that restarted does not know the old one, and returns whether it took care of an error."""
        self._transport = transport
        self._training = training
        self._period = period_seconds
        self._round_over = round_over
        self._on_losses = on_losses
        self._recover = recover
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop beating; returns when the thread has ended; safe to repeat."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        pause = self._period
        while not self._stopped.wait(pause):
            pause = self._period
            try:
                step, losses = self._transport.next_step(self._training)
            except TransportError as exc:
                log.debug("heartbeat not heard", extra={"reason": str(exc)})
                # A lost one has cost its deadline already; the server counts the silence.
                pause = self._period / 4
            except RefusedError as exc:
                if exc.code is ErrorCode.ROUND_OVER or not self._recovered(exc):
                    self._round_over.set()
            else:
                self._on_losses(losses)
                if isinstance(step, Finished) or (isinstance(step, Assignment) and step.round != self._training):
                    self._round_over.set()

    def _recovered(self, error: RefusedError) -> bool:
        """Whether the round may go on after this refusal; other refusals than of the session are the training thread's to hear."""
        if error.code is not ErrorCode.SESSION_UNKNOWN:
            return True
        try:
            return self._recover(error)
        except HeronError as exc:
            log.debug("the session could not be renewed", extra={"reason": str(exc)})
            return False
