"""One upload, through the bounded window between compute and network: activations leave as they are computed, and compute waits when the uplink is slower."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

from heron_common.errors import HeronError, TransportError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import TensorSpec, total_bytes
from heron_common.process.clock import Clock
from heron_common.protocol.chunks import MAX_CHUNK_BYTES, split_rows, usual_chunk_bytes
from heron_common.protocol.messages import UploadAnswer, UploadPurpose

DEFAULT_WINDOW_BYTES = 4 << 20
"""Enough to hide a round trip, little beside the client's fixed memory."""


@dataclass(frozen=True)
class UploadRequest:
    """What the header of an upload says."""

    round: RoundReference
    purpose: UploadPurpose
    _: KW_ONLY
    local_step: int
    num_probes: int
    tensors: tuple[TensorSpec, ...]
    answer_tensors: tuple[TensorSpec, ...] = ()
    """What the server sends back beside scalars; the step waits for it."""

    @property
    def num_probe_losses(self) -> int:
        """How many losses the server judges: one for each row of activations where there are probes, else none."""
        return self.tensors[0].shape[0] if self.num_probes else 0


Chunk = tuple[int, bytes] | None
"""Tensor index and bytes; None gives the stream up."""


class StreamEnded(Exception):  # noqa: N818 - not a failure of its own: the answer says why
    """A repeated upload was refused while it was being computed, so that computing on is pointless."""


SendUpload = Callable[[UploadRequest, Iterator[Chunk]], UploadAnswer]
"""Sends header, chunks (tensor index, bytes) and trailer; returns the answer or raises HeronError."""


class Upload:
    """One upload under way: rows go in from the computing thread, chunks go out on a thread of its own.

    An upload that is not sent `beside` computing goes out on the computing thread once it is finished, if its window holds all of it.
    """

    def __init__(
        self,
        request: UploadRequest,
        send: SendUpload,
        *,
        clock: Clock,
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        repeats: bool = False,
        beside: bool = True,
    ) -> None:
        """Start the upload, or repeat one that failed."""
        self.request = request
        self.wait_seconds = 0.0
        """How long the computing thread waited for the window or for the answer."""
        self.repeats = repeats
        self._window_bytes = max(window_bytes, MAX_CHUNK_BYTES)
        self._clock = clock
        self._condition = threading.Condition()
        self._queue: deque[tuple[int, bytearray, int]] = deque()
        """Tensor index, buffer, and how much of it is filled."""
        self._queued_bytes = 0
        self._closed = False
        self._done = False
        self._aborted = False
        self._answer: UploadAnswer | None = None
        self._error: HeronError | None = None
        self._tensor_index = 0
        # Buffers go round between the two threads: fresh memory for every chunk would cost the computing thread more than copying does.
        self._buffer_bytes = _chunk_bytes(request.tensors)
        self._spare: list[bytearray] = []
        self._filling = bytearray(self._buffer_bytes)
        self._filled = 0
        self._send = send
        self._thread: threading.Thread | None = None
        if beside or total_bytes(request.tensors) > self._window_bytes:
            self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
            self._thread.start()

    def write(self, tensor_index: int, rows: memoryview) -> None:
        """Queue whole rows of a tensor; blocks while the window is full.

        Once the stream has failed this does nothing, for the step still needs the losses of its forward passes; a repeat raises StreamEnded instead.
        """
        if self.repeats and self._done:
            raise StreamEnded
        if tensor_index != self._tensor_index:
            self._flush()
            self._tensor_index = tensor_index
        for piece in split_rows(rows, self.request.tensors[tensor_index].row_bytes, self._buffer_bytes):
            if self._filled + len(piece) > self._buffer_bytes:
                self._flush()
            # Through a view: a bytearray would copy the piece once more.
            memoryview(self._filling)[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)

    def finish(self) -> None:
        """Say that all rows are written; returns at once, unless the computing thread is the one that sends."""
        self._flush()
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread is None:
            started = self._clock.now()
            self._run()
            self.wait_seconds += self._clock.now() - started

    def answer(self) -> UploadAnswer:
        """Wait for the server's answer; the wait counts as upload wait.

        Raises:
            HeronError: what went wrong, RefusedError and TransportError among them.

        """
        if self._thread is not None:
            started = self._clock.now()
            self._thread.join()
            self.wait_seconds += self._clock.now() - started
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise TransportError("the upload ended without an answer")
        return self._answer

    @property
    def answered(self) -> bool:
        """Whether the server has accepted it."""
        return self._answer is not None

    def abort(self) -> None:
        """Give the upload up; returns at once, safe to repeat."""
        with self._condition:
            self._aborted = self._done = self._closed = True
            self._queue.clear()
            self._condition.notify_all()

    def _flush(self) -> None:
        if not self._filled:
            return
        started = self._clock.now()
        with self._condition:
            while self._queued_bytes + self._filled > self._window_bytes and self._queue and not self._done:
                self._condition.wait()
            if not self._done:
                self._queue.append((self._tensor_index, self._filling, self._filled))
                self._queued_bytes += self._filled
                self._filling = self._spare.pop() if self._spare else bytearray(self._buffer_bytes)
                self._condition.notify_all()
        self._filled = 0
        self.wait_seconds += self._clock.now() - started

    def _chunks(self) -> Iterator[Chunk]:
        while True:
            with self._condition:
                while not self._queue and not self._closed:
                    self._condition.wait()
                aborted, over = self._aborted, self._done or not self._queue
                chunk = None if over else self._queue.popleft()
                if chunk is not None:
                    self._queued_bytes -= chunk[2]
                    self._condition.notify_all()
            if aborted:
                yield None
            if chunk is None:
                return
            tensor_index, buffer, filled = chunk
            data = bytes(memoryview(buffer)[:filled])
            with self._condition:
                self._spare.append(buffer)
            yield tensor_index, data

    def _run(self) -> None:
        try:
            self._answer = self._send(self.request, self._chunks())
        except HeronError as exc:
            self._error = exc
        except Exception as exc:  # a defect must reach the computing thread, not die with this one
            self._error = TransportError(f"the upload failed unexpectedly: {exc!r}")
            self._error.__cause__ = exc
        finally:
            with self._condition:
                self._done = True
                self._condition.notify_all()


def _chunk_bytes(tensors: tuple[TensorSpec, ...]) -> int:
    """Return the size of chunks: the usual one, or a row if that is larger and fits, and never more than the upload has."""
    fitting = [spec.row_bytes for spec in tensors if spec.row_bytes <= MAX_CHUNK_BYTES]
    return min(usual_chunk_bytes(max(fitting)), total_bytes(tensors)) if fitting else MAX_CHUNK_BYTES
