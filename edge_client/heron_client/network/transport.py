"""Every call of the client: domain values in, domain values out; `grpc.RpcError` never leaves this file."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import onnxruntime

from heron_client.network.answer_reader import AnswerReader
from heron_client.network.channel import open_channel, translate
from heron_client.network.downloads import Download
from heron_client.network.membership_checks import check_membership
from heron_client.network.memory_budget import memory_budget
from heron_client.network.open_calls import OpenCalls
from heron_client.network.stall import Progress, StallWatch
from heron_client.network.stream_messages import stream_messages
from heron_client.network.upload import Chunk, UploadRequest
from heron_common.error_catalog import ErrorCode
from heron_common.errors import ProgramError, RefusedError, TransportError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import raw_bytes, total_bytes
from heron_common.process.clock import MonotonicClock
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.protocol.chunks import split_rows, usual_chunk_bytes
from heron_common.protocol.messages import (
    EVALUATION_KIND,
    LocalStatistics,
    Membership,
    NextStep,
    PeakMemory,
    Submission,
    UploadAnswer,
    UploadLoss,
    UploadPurpose,
)
from heron_common.protocol.timing import LONGEST_CALL_DEADLINE_SECONDS, Timing
from heron_common.protocol.wire import encoding_to_proto, purpose_to_proto, round_to_proto, tensor_spec_to_proto
from heron_common.protocol.wire_messages import (
    answer_from_proto,
    losses_from_proto,
    membership_from_proto,
    next_step_from_proto,
    statistics_to_proto,
)
from heron_common.version import PROTOCOL_VERSION, VERSION
from heron_proto.v1 import split_training_pb2 as pb

if TYPE_CHECKING:
    from heron_common.files.tls_directory import Credentials

CountBytes = Callable[[str, str, int], None]
"""(direction "up" or "down", kind, bytes)."""

Connect = Callable[[], tuple[Any, Callable[[], None]]]
"""Opens a way to a server: the service's stub, and what closes it."""

STREAM_DEADLINE_SECONDS = 3600.0
"""For a stream that moves all the time: round deadlines and resumed downloads end it long before, stalls before that."""

LEAVE_DEADLINE_SECONDS = 5.0
"""A goodbye is a courtesy: the server notices a silent client by itself."""


class Transport:
    """One channel to one server and the session that lives on it.

    Safe to use from the training, upload and heartbeat threads at once; control calls take turns.
    """

    def __init__(
        self,
        target: str,
        *,
        count_bytes: CountBytes,
        count_refusal: Callable[[ErrorCode], None],
        connect: Connect | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """`connect` opens another way to the server than a channel to `target`, which then only names it; the channel is in clear without `credentials`."""
        self._target = target
        self._count = count_bytes
        self._count_refusal = count_refusal
        self._has_channel = connect is None
        self._credentials = credentials
        self._timing = Timing()
        self._call_deadline = self._timing.call_deadline_seconds
        # Where there is no network only other clients of this process are waited for.
        stall = self._timing.stall_seconds if connect is None else STREAM_DEADLINE_SECONDS
        self._stalls = StallWatch(MonotonicClock(), stall)
        self._stub, self._close = connect() if connect is not None else open_channel(target, self._timing, credentials)
        self._control = threading.Lock()
        self._calls = OpenCalls()
        self._session = ""
        self._run_id = ""
        self._lock = threading.Lock()
        self._losses_seen = 0

    def join(
        self, client_name: str, identity_key: str, num_examples: int, *, columns: tuple[str, ...] = (), only_checks: bool = False
    ) -> Membership:
        """Introduce this client and keep the session; with `only_checks` it takes no part in the run. `columns` become the run's where it has none.

        Raises:
            RefusedError: the server refuses it, for good or for now.
            TransportError: the server cannot be reached.
            ProgramError: its answer is not one that a client can work with.

        """
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            client_name=client_name,
            identity_key=identity_key,
            num_examples=num_examples,
            columns=columns,
            only_checks=only_checks,
            capabilities=pb.Capabilities(
                client_version=VERSION,
                runtime_version=f"onnxruntime {onnxruntime.__version__}",
            ),
        )
        response = self._call(self._stub.Join, request)
        membership = membership_from_proto(response)
        check_membership(membership, memory_budget())
        self._session, self._run_id, self._losses_seen = membership.session, membership.run_id, 0
        self._agree(Timing.from_heartbeat(membership.heartbeat_seconds))
        return membership

    def _agree(self, timing: Timing) -> None:
        """Keep the server's timing from now on: over a new channel, for keepalive is a property of connections."""
        if timing == self._timing or not self._has_channel:
            return
        self._timing = timing
        self._call_deadline, self._stalls.stall_seconds = timing.call_deadline_seconds, timing.stall_seconds
        close = self._close
        self._stub, self._close = open_channel(self._target, timing, self._credentials)
        close()

    def next_step(self, training: RoundReference | None) -> tuple[NextStep, tuple[UploadLoss, ...]]:
        """Ask what to do next, or, while training, say that this client is alive; returns at once."""
        request = pb.NextAssignmentRequest(
            session=self._session,
            training=round_to_proto(training) if training else None,
            losses_seen=self._losses_seen,
        )
        response = self._call(self._stub.NextAssignment, request)
        return next_step_from_proto(response), self._new_losses(request.losses_seen, losses_from_proto(response.losses))

    def fetch(self, download: Download, kind: str) -> None:
        """Fetch what a download lacks; a repeated call goes on where the one before was interrupted, or outlasted its deadline.

        Raises:
            ProgramError: the bytes are not the ones that the digest names; the next call begins anew.
            StorageError: the disk refuses.

        """
        request = pb.FetchBlobRequest(session=self._session, sha256=download.blob.sha256, offset_bytes=download.offset_bytes)
        with self._mapped():
            for piece in self._pieces(request):
                self._count("down", kind, len(piece))
                download.take(piece)
                crash_point(CrashPoint.CLIENT_BLOB_PART)
        download.finish()

    def _pieces(self, request: pb.FetchBlobRequest) -> Iterator[bytes]:
        """Yield a blob as it comes; pieces of nothing could come for ever."""
        call = self._stub.FetchBlob(request, timeout=STREAM_DEADLINE_SECONDS)
        with self._stalls.watching(call.cancel) as progress:
            for part in self._calls.responses(call):
                progress.note()
                if not part.data:
                    raise ProgramError(f"blob {request.sha256[:12]} came with a piece of no bytes: it is refused")
                yield part.data

    def upload(self, request: UploadRequest, chunks: Iterator[Chunk]) -> UploadAnswer:
        """Send one upload as its chunks become available and return the server's answer."""
        header = pb.UploadHeader(
            session=self._session,
            run_id=self._run_id,
            round=round_to_proto(request.round),
            purpose=purpose_to_proto(request.purpose),
            local_step=request.local_step,
            num_probes=request.num_probes,
            tensors=[tensor_spec_to_proto(spec) for spec in request.tensors],
            total_bytes=total_bytes(request.tensors),
            losses_seen=self._losses_seen,
        )
        evaluates = request.purpose is UploadPurpose.EVALUATE
        kinds = [EVALUATION_KIND if evaluates else spec.name for spec in request.tensors]

        def count(tensor_index: int, size: int) -> None:
            self._count("up", kinds[tensor_index], size)

        call: list[Any] = []
        with self._mapped(), self._stalls.watching(lambda: call[0].cancel()) as progress:
            messages = stream_messages(pb.TrainBatchRequest, header, chunks, progress=progress, count_bytes=count)
            call.append(self._stub.TrainBatch(messages, timeout=STREAM_DEADLINE_SECONDS))
            answer = self._read_answer(self._calls.responses(call[0]), request, progress)
        return dataclasses.replace(answer, losses=self._new_losses(header.losses_seen, answer.losses))

    def _read_answer(self, responses: Iterator[Any], request: UploadRequest, progress: Progress) -> UploadAnswer:
        """Read the scalars, and behind them the tensors that the plan asks for, up to their announced size and checked against their digest."""
        reading = AnswerReader(request.answer_tensors, request.num_probe_losses)
        for response in responses:
            # One without a part says that the server is there and the answer is not yet.
            progress.note()
            part = response.WhichOneof("part")
            if part == "answer":
                reading.answer(answer_from_proto(response.answer))
                self._count("down", "losses", response.ByteSize())
            elif part == "chunk":
                name = reading.chunk(response.chunk.tensor_index, response.chunk.data)
                self._count("down", name, len(response.chunk.data))
            elif part == "trailer":
                reading.trailer(response.trailer.length_bytes, response.trailer.sha256)
        return reading.whole()

    def submit(
        self, reference: RoundReference, submission: Submission, *, steps: int, statistics: LocalStatistics
    ) -> tuple[UploadLoss, ...]:
        """Submit what a round made; safe to repeat."""
        specs = submission.tensors
        header = pb.UpdateHeader(
            session=self._session,
            run_id=self._run_id,
            round=round_to_proto(reference),
            steps_completed=steps,
            encoding=encoding_to_proto(submission.encoding),
            tensors=[tensor_spec_to_proto(spec) for spec in specs],
            total_bytes=total_bytes(specs),
            statistics=statistics_to_proto(statistics),
            losses_seen=self._losses_seen,
            weights_sha256=submission.weights_sha256,
        )
        chunks = (
            (index, bytes(piece))
            for index, (spec, array) in enumerate(zip(specs, submission.arrays, strict=True))
            for piece in split_rows(raw_bytes(np.ascontiguousarray(array)), spec.row_bytes, usual_chunk_bytes(spec.row_bytes))
        )
        crash_point(CrashPoint.CLIENT_UPDATE_SENDING)
        call: list[Any] = []
        with self._mapped(), self._stalls.watching(lambda: call[0].cancel()) as progress:
            messages = stream_messages(
                pb.SubmitUpdateRequest, header, chunks, progress=progress, count_bytes=lambda _, size: self._count("up", "update", size)
            )
            call.append(self._stub.SubmitUpdate.future(messages, timeout=STREAM_DEADLINE_SECONDS))
            response = self._calls.result(call[0])
        return self._new_losses(header.losses_seen, losses_from_proto(response.losses))

    def leave(self, reason: str, peak: PeakMemory) -> None:
        """Say goodbye, even after `cancel`; raises TransportError or RefusedError if the server did not hear it."""
        if not self._session:
            return
        request = pb.LeaveRequest(
            session=self._session, reason=reason, peak_memory_bytes=peak.resident_bytes, peak_anonymous_bytes=peak.anonymous_bytes
        )
        try:
            self._say_goodbye(request)
        except (TransportError, RefusedError):
            # Once more, over the connection that comes after the one that just died, or that damaged the first.
            self._say_goodbye(request)

    def _say_goodbye(self, request: pb.LeaveRequest) -> None:
        with self._mapped():
            self._stub.Leave(request, timeout=LEAVE_DEADLINE_SECONDS, wait_for_ready=True)

    def cancel(self) -> None:
        """Cancel every call under way and every later one but `leave`; their callers get a TransportError."""
        self._calls.cancel()

    def close(self) -> None:
        """Cancel what is under way and close the channel; safe to repeat."""
        self.cancel()
        self._stalls.close()
        self._close()

    def _call(self, method: Any, request: Any) -> Any:
        with self._control, self._mapped():
            call = method.future(request, timeout=self._call_deadline)
            try:
                response = self._calls.result(call)
            except grpc.RpcError as exc:
                if cast("grpc.Call", exc).code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    # A server or network that is slow for now gets more time, not the same question again and again.
                    self._call_deadline = min(2 * self._call_deadline, LONGEST_CALL_DEADLINE_SECONDS)
                raise
        self._count("up", "control", request.ByteSize())
        self._count("down", "control", response.ByteSize())
        return response

    def _new_losses(self, seen: int, losses: tuple[UploadLoss, ...]) -> tuple[UploadLoss, ...]:
        """Return the losses after the first `seen` that no other answer, which overtook this one, has brought already."""
        with self._lock:
            fresh = losses[max(0, self._losses_seen - seen) :]
            self._losses_seen = max(self._losses_seen, seen + len(losses))
        return fresh

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except grpc.FutureCancelledError as exc:
            raise TransportError(f"the call to {self._target} was cancelled") from exc
        except grpc.RpcError as exc:
            error = translate(exc, self._target, bool(self._session))
            if isinstance(error, RefusedError):
                self._count_refusal(error.code)
            raise error from exc
