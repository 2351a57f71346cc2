"""The service `heron.v1.SplitTraining`: wire types in, domain calls, wire types out. Raises; the interceptor translates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from heron_common.assignment import EVALUATION_KIND, DataSpecification, UploadKey, UploadPurpose
from heron_common.chunks import USUAL_CHUNK_BYTES, StreamAccount
from heron_common.crash_points import CrashPoint, crash_point
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.version import PROTOCOL_VERSION, VERSION
from heron_common.wire import (
    answer_to_proto,
    encoding_from_proto,
    loss_to_proto,
    membership_to_proto,
    next_step_to_proto,
    purpose_from_proto,
    round_from_proto,
    statistics_from_proto,
    tensor_specs_from_proto,
)
from heron_proto.v1 import split_training_pb2 as pb
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingServicer
from heron_server.metrics import ServerMetrics
from heron_server.rounds.clients import ClientRecord
from heron_server.rounds.intake import Intake, UpdateTicket, UploadTicket
from heron_server.rounds.reception import Reception
from heron_server.service.identity import certified_name
from heron_server.service.streams import receive_header, receive_payload
from heron_server.storage.spool import SpoolEntry


class Servicer(SplitTrainingServicer):
    """One instance serves all clients; every method runs on a thread of the pool."""

    def __init__(self, reception: Reception, intake: Intake, metrics: ServerMetrics, data: DataSpecification) -> None:
        self._reception = reception
        self._intake = intake
        self._metrics = metrics
        self._data = data

    def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:  # noqa: N802
        crash_point(CrashPoint.JOIN_RECEIVED)
        if request.protocol_version != PROTOCOL_VERSION:
            raise RefusedError(
                ErrorCode.PROTOCOL_VERSION,
                f"this server (heron {VERSION}) speaks protocol version {PROTOCOL_VERSION}, the client speaks {request.protocol_version}: update the older one",
            )
        speaker, version = certified_name(context), request.capabilities.client_version
        membership = (
            self._reception.visit(speaker)
            if request.only_checks
            else self._reception.join(request.client_name, request.identity_key, request.num_examples, version[:100], speaker)
        )
        response = membership_to_proto(membership)
        self._count_control(self._reception.client(membership.session, speaker), request, response)
        crash_point(CrashPoint.JOIN_ANSWERED)
        return response

    def FetchBlob(self, request: pb.FetchBlobRequest, context: Any) -> Iterator[pb.FetchBlobResponse]:  # noqa: N802
        speaker = certified_name(context)
        record = self._reception.client(request.session, speaker)
        data = memoryview(self._reception.blob(record, request.sha256))
        kind = self._reception.blob_kind(request.sha256)
        if request.offset_bytes > len(data):
            raise RefusedError(ErrorCode.OVERSIZED, f"the blob has {len(data)} bytes, so it cannot be read from {request.offset_bytes}")
        crash_point(CrashPoint.BLOB_BEGUN)
        for start in range(request.offset_bytes, len(data), USUAL_CHUNK_BYTES):
            piece = bytes(data[start : start + USUAL_CHUNK_BYTES])
            # As with uploads: a device behind a slow link fetches for minutes and must not look like a departed one.
            self._reception.client(request.session, speaker)
            self._count(record, "down", kind, len(piece))
            yield pb.FetchBlobResponse(data=piece)

    def NextAssignment(self, request: pb.NextAssignmentRequest, context: Any) -> pb.NextAssignmentResponse:  # noqa: N802
        record = self._reception.client(request.session, certified_name(context))
        crash_point(CrashPoint.ASSIGNMENT_ASKED)
        training = round_from_proto(request.training) if request.HasField("training") else None
        step = self._reception.next_step(record, training)
        response = next_step_to_proto(step, self._reception.losses_for(record, request.losses_seen))
        self._count_control(record, request, response)
        return response

    def TrainBatch(self, messages: Iterator[pb.TrainBatchRequest], context: Any) -> Iterator[pb.TrainBatchResponse]:  # noqa: N802
        with self._intake.awaiting_header(context.cancel):
            header: pb.UploadHeader = receive_header(messages)
        record = self._reception.client(header.session, certified_name(context))
        key = UploadKey(round_from_proto(header.round), record.name, purpose_from_proto(header.purpose), header.local_step)
        specs = tensor_specs_from_proto(header.tensors)
        ticket = self._intake.admit_upload(record, header.run_id, key, header.num_probes, specs, header.total_bytes, context.cancel)
        kind = EVALUATION_KIND if key.purpose is UploadPurpose.EVALUATE else None
        crash_point(CrashPoint.UPLOAD_ADMITTED)
        with self._receiving(ticket):
            digest = receive_payload(messages, ticket.specs, ticket.writer, self._data, self._on_chunk(ticket, header.session, kind))
            crash_point(CrashPoint.UPLOAD_RECEIVED)
            self._intake.accept_upload(ticket, digest)
        crash_point(CrashPoint.UPLOAD_ACCEPTED)
        while (answered := self._intake.answer(ticket, header.losses_seen)) is None:
            # The client counts the silence, and cannot know how long others take.
            yield pb.TrainBatchResponse()
        answer, cut_gradient = answered
        response = pb.TrainBatchResponse(answer=answer_to_proto(answer))
        self._count(record, "down", "losses", response.ByteSize())
        yield response
        if cut_gradient is not None:
            yield from self._send(record, cut_gradient)

    def _send(self, record: ClientRecord, entry: SpoolEntry) -> Iterator[pb.TrainBatchResponse]:
        """Stream lambda from the spool: chunks of one tensor, then length and digest."""
        account = StreamAccount()
        for piece in entry.pieces(USUAL_CHUNK_BYTES):
            account.add(piece)
            self._count(record, "down", "cut_gradient", len(piece))
            yield pb.TrainBatchResponse(chunk=pb.TensorChunk(tensor_index=0, data=piece))
        yield pb.TrainBatchResponse(trailer=pb.Trailer(length_bytes=account.length_bytes, sha256=account.sha256))

    def SubmitUpdate(self, messages: Iterator[pb.SubmitUpdateRequest], context: Any) -> pb.SubmitUpdateResponse:  # noqa: N802
        with self._intake.awaiting_header(context.cancel):
            header: pb.UpdateHeader = receive_header(messages)
        record = self._reception.client(header.session, certified_name(context))
        encoding = encoding_from_proto(header.encoding)
        reference = round_from_proto(header.round)
        specs = tensor_specs_from_proto(header.tensors)
        ticket = self._intake.admit_update(
            record, header.run_id, reference, header.steps_completed, encoding, specs, header.total_bytes, context.cancel
        )
        count = self._on_chunk(ticket, header.session, "update")
        crash_point(CrashPoint.UPDATE_ADMITTED)
        with self._receiving(ticket):
            digest = receive_payload(messages, ticket.specs, ticket.writer, self._data, count)
            crash_point(CrashPoint.UPDATE_RECEIVED)
            self._intake.accept_update(ticket, digest, header.weights_sha256, statistics_from_proto(header.statistics))
        crash_point(CrashPoint.UPDATE_ACCEPTED)
        response = pb.SubmitUpdateResponse(losses=[loss_to_proto(loss) for loss in self._reception.losses_for(record, header.losses_seen)])
        self._count(record, "down", "losses", response.ByteSize())
        return response

    def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveResponse:  # noqa: N802
        record = self._reception.client(request.session, certified_name(context))
        self._count(record, "up", "control", request.ByteSize())
        crash_point(CrashPoint.LEAVE_RECEIVED)
        self._reception.leave(record, request.reason, request.peak_memory_bytes)
        return pb.LeaveResponse()

    @contextmanager
    def _receiving(self, ticket: UploadTicket | UpdateTicket) -> Iterator[None]:
        """Free room and place when a stream ends, however it ends."""
        try:
            with ticket.writer or nullcontext():
                yield
        finally:
            self._intake.release(ticket)

    def _on_chunk(self, ticket: UploadTicket | UpdateTicket, session: str, kind: str | None = None) -> Callable[[str, int], None]:
        def note(tensor: str, size: int) -> None:
            # Every chunk is a sign of life: a slow uplink must not look like a departed client.
            self._reception.client(session, ticket.client.speaker)
            crash_point(CrashPoint.UPLOAD_CHUNK)
            self._count(ticket.client, "up", kind or tensor, size)
            self._intake.check_open(ticket)

        return note

    def _count_control(self, record: ClientRecord, request: Any, response: Any) -> None:
        self._count(record, "up", "control", request.ByteSize())
        self._count(record, "down", "control", response.ByteSize())

    def _count(self, record: ClientRecord, direction: str, kind: str, size: int) -> None:
        self._reception.count(record, direction, kind, size)
        self._metrics.bytes.labels(direction=direction, kind=kind).inc(size)
