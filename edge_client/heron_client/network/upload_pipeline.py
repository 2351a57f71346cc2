"""Exactly one answer for every upload: settle the one before, stream this one, and recompute it when the network fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from heron_client.network.retry_policy import Recover, RetryPolicy
from heron_client.network.upload import DEFAULT_WINDOW_BYTES, SendUpload, StreamEnded, Upload, UploadRequest
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.numerics.tensors import Float32Array
from heron_common.process.clock import Clock
from heron_common.protocol.messages import UploadAnswer

Stream = Callable[[Upload], Float32Array]
"""Writes one upload, from the beginning, and returns the base losses; the same call writes the same bytes."""


class RoundStopped(HeronError):  # noqa: N818 - the round ends elsewhere; nothing went wrong here
    """The server ended or changed the round while this client was at work on it."""


@dataclass(frozen=True)
class SendOutcome:
    """Base losses of the streamed pass, and the answer if the plan waits for it."""

    losses: Float32Array
    answer: UploadAnswer | None


@dataclass(frozen=True)
class _Pending:
    upload: Upload
    stream: Stream


class UploadPipeline:
    """The uploads of one round, at most one in flight while the next step computes."""

    def __init__(
        self,
        send: SendUpload,
        retry_policy: RetryPolicy,
        *,
        clock: Clock,
        round_over: threading.Event,
        on_answer: Callable[[UploadAnswer], None],
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        recover: Recover | None = None,
        beside: bool = True,
    ) -> None:
        """`recover` mends what made an upload fail, if it can, and returns whether to send it again at once; `beside` as in `Upload`."""
        self._send = send
        self._retry_policy = retry_policy
        self._clock = clock
        self._round_over = round_over
        self._on_answer = on_answer
        self._window_bytes = window_bytes
        self._recover = recover
        self._beside = beside
        self._pending: _Pending | None = None
        self._waited_seconds = 0.0

    def send(self, request: UploadRequest, stream: Stream) -> SendOutcome:
        """Settle the upload before, stream this one, and wait for its answer only if the step needs it.

        Raises:
            Interrupted: this process was asked to stop.
            RoundStopped: the server ended the round.
            RefusedError: the server refuses the upload for good.
            TransportError: the server was out of reach for longer than the retry policy allows.

        """
        self.settle()
        self.check()
        upload = self._open(request, stream, repeats=False)
        losses = stream(upload)
        return SendOutcome(losses, self.settle() if request.num_probes or request.answer_tensors else None)

    def settle(self) -> UploadAnswer | None:
        """Wait for the answer to the upload under way, repeating it as long as the retry policy allows; None if there is none."""
        if self._pending is None:
            return None
        attempts = self._retry_policy.begin("upload a step", self._recover)
        while True:
            try:
                answer = self._pending.upload.answer()
            except (TransportError, RefusedError) as exc:
                self.check()
                attempts.wait(exc)
                self.check()
                self._repeat(self._pending)
            else:
                self._forget()
                self._on_answer(answer)
                return answer

    @property
    def answered(self) -> bool:
        """Whether nothing that was sent can have to be computed again."""
        return self._pending is None or self._pending.upload.answered

    @property
    def wait_seconds(self) -> float:
        """How long computing has waited for the window or for answers."""
        return self._waited_seconds + (self._pending.upload.wait_seconds if self._pending else 0.0)

    def check(self) -> None:
        """Raise Interrupted or RoundStopped if it is time to."""
        self._retry_policy.check()
        if self._round_over.is_set():
            raise RoundStopped("the server ended this round")

    def abort(self) -> None:
        """Give up the upload under way; safe to repeat."""
        if self._pending is not None:
            self._pending.upload.abort()
            self._forget()

    def _open(self, request: UploadRequest, stream: Stream, repeats: bool) -> Upload:
        upload = Upload(request, self._send, clock=self._clock, window_bytes=self._window_bytes, repeats=repeats, beside=self._beside)
        self._pending = _Pending(upload, stream)
        return upload

    def _repeat(self, failed: _Pending) -> None:
        self._forget()
        try:
            failed.stream(self._open(failed.upload.request, failed.stream, repeats=True))
        except StreamEnded:
            # Refused again, at its header: its error comes with the answer.
            return

    def _forget(self) -> None:
        self._waited_seconds, self._pending = self.wait_seconds, None
