"""Exactly one answer for every upload: settle the one before, stream this one, and recompute it when the network fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from heron_client.network.retry_policy import Patience
from heron_client.network.upload import StreamEnded, Upload, Uploader, UploadRequest
from heron_common.errors import HeronError, Interrupted, RefusedError, TransportError
from heron_common.numerics.tensors import Float32Array
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


@dataclass
class _Pending:
    upload: Upload
    stream: Stream


class StepSender:
    """Sends the uploads of one round, at most one in flight while the next step computes."""

    def __init__(
        self,
        uploader: Uploader,
        patience: Patience,
        stop: threading.Event,
        round_over: threading.Event,
        on_answer: Callable[[UploadAnswer], None],
        recover: Callable[[HeronError], bool] = lambda _: False,
    ) -> None:
        """`recover` mends what made an upload fail, if it can, and returns whether to send it again at once."""
        self._uploader = uploader
        self._patience = patience
        self._stop = stop
        self._round_over = round_over
        self._on_answer = on_answer
        self._recover = recover
        self._pending: _Pending | None = None

    def send(self, request: UploadRequest, stream: Stream) -> SendOutcome:
        """Settle the upload before, stream this one, and wait for its answer only if the step needs it.

        Raises:
            Interrupted: this process was asked to stop.
            RoundStopped: the server ended the round.
            RefusedError: the server refuses the upload for good.
            TransportError: the server was out of reach for longer than patience lasts.

        """
        self.settle()
        self.check()
        upload = self._uploader.open(request)
        self._pending = _Pending(upload, stream)
        losses = stream(upload)
        return SendOutcome(losses, self.settle() if request.num_probes or request.answer_tensors else None)

    def settle(self) -> UploadAnswer | None:
        """Wait for the answer to the upload under way, repeating it as long as patience lasts; None if there is none."""
        if self._pending is None:
            return None
        attempts = self._patience.begin("upload a step")
        while True:
            try:
                answer = self._pending.upload.answer()
            except (TransportError, RefusedError) as exc:
                self.check()
                if self._recover(exc):
                    # The server is there again, so it counts as out of reach from its next failure on.
                    attempts = self._patience.begin("upload a step")
                else:
                    attempts.wait(exc)
                self.check()
                self._repeat(self._pending)
            else:
                self._pending = None
                self._on_answer(answer)
                return answer

    @property
    def answered(self) -> bool:
        """Whether nothing that was sent can have to be computed again."""
        return self._pending is None or self._pending.upload.answered

    def check(self) -> None:
        """Raise Interrupted or RoundStopped if it is time to."""
        if self._stop.is_set():
            raise Interrupted("asked to stop")
        if self._round_over.is_set():
            raise RoundStopped("the server ended this round")

    def abort(self) -> None:
        """Give up the upload under way; safe to repeat."""
        if self._pending is not None:
            self._pending.upload.abort()
            self._pending = None

    def _repeat(self, pending: _Pending) -> None:
        pending.upload = self._uploader.open(pending.upload.request, repeats=True)
        try:
            pending.stream(pending.upload)
        except StreamEnded:
            # Refused again, at its header: its error comes with the answer.
            return
