"""The service `heron.v1.SplitTraining`: wire types in, domain calls, wire types out. Raises; the interceptor translates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_common.protocol.chunks import USUAL_CHUNK_BYTES, StreamAccount
from heron_common.protocol.messages import EVALUATION_KIND, PeakMemory, UploadPurpose
from heron_common.protocol.wire import (
    columns_from_proto,
    encoding_from_proto,
    purpose_from_proto,
    round_from_proto,
    tensor_specs_from_proto,
)
from heron_common.protocol.wire_messages import (
    answer_to_proto,
    loss_to_proto,
    membership_to_proto,
    next_step_to_proto,
    statistics_from_proto,
)
from heron_common.specification.data_specification import DataSpecification
from heron_common.version import PROTOCOL_VERSION, VERSION
from heron_proto.v1 import split_training_pb2 as pb
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingServicer
from heron_server.rounds.admission import UpdateHeader, UploadHeader
from heron_server.rounds.clients import ClientRecord
from heron_server.rounds.owner import RoundOwner
from heron_server.rounds.receiving import Receiver
from heron_server.service.identity import address_of, certified_name
from heron_server.service.streams import receive_header, receive_payload
from heron_server.storage.spool import SpoolEntry

ParsedHeader = TypeVar("ParsedHeader", UploadHeader, UpdateHeader)


class Servicer(SplitTrainingServicer):
    """One instance serves all clients; every method runs on a thread of the pool."""

    def __init__(self, owner: RoundOwner, receiver: Receiver, *, data: DataSpecification, heartbeat_seconds: float) -> None:
        self._owner = owner
        self._receiver = receiver
        self._data = data
        self._heartbeat_seconds = heartbeat_seconds

    def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:  # noqa: N802
        crash_point(CrashPoint.JOIN_RECEIVED)
        if request.protocol_version != PROTOCOL_VERSION:
            raise RefusedError(
                ErrorCode.PROTOCOL_VERSION,
                f"this server (heron {VERSION}) speaks protocol version {PROTOCOL_VERSION}, the client speaks {request.protocol_version}: update the older one",
            )
        speaker, version = certified_name(context), request.capabilities.client_version[:100]
        if request.only_checks:
            membership = self._owner.visit(speaker, address_of(context))
        else:
            membership = self._owner.join(
                request.client_name,
                request.identity_key,
                num_examples=request.num_examples,
                version=version,
                speaker=speaker,
                columns=columns_from_proto(request.columns),
            )
        response = membership_to_proto(membership)
        self._count_control(self._owner.client(membership.session, speaker), request, response)
        crash_point(CrashPoint.JOIN_ANSWERED)
        return response

    def FetchBlob(self, request: pb.FetchBlobRequest, context: Any) -> Iterator[pb.FetchBlobResponse]:  # noqa: N802
        record = self._owner.client(request.session, certified_name(context))
        data, kind = self._owner.blob(record, request.sha256)
        if request.offset_bytes > len(data):
            raise RefusedError(ErrorCode.OVERSIZED, f"the blob has {len(data)} bytes, so it cannot be read from {request.offset_bytes}")
        crash_point(CrashPoint.BLOB_BEGUN)
        for start in range(request.offset_bytes, len(data), USUAL_CHUNK_BYTES):
            piece = bytes(data[start : start + USUAL_CHUNK_BYTES])
            self._owner.note(record, "down", kind=kind, size_bytes=len(piece))
            yield pb.FetchBlobResponse(data=piece)

    def NextAssignment(self, request: pb.NextAssignmentRequest, context: Any) -> pb.NextAssignmentResponse:  # noqa: N802
        crash_point(CrashPoint.ASSIGNMENT_ASKED)
        training = round_from_proto(request.training) if request.HasField("training") else None
        record, step, losses = self._owner.next_step(
            request.session, training, losses_seen=request.losses_seen, speaker=certified_name(context)
        )
        response = next_step_to_proto(step, losses)
        self._count_control(record, request, response)
        return response

    def TrainBatch(self, messages: Iterator[pb.TrainBatchRequest], context: Any) -> Iterator[pb.TrainBatchResponse]:  # noqa: N802
        header: pb.UploadHeader = receive_header(messages)
        announced = self._announced(header, certified_name(context), _upload_header)
        kind = EVALUATION_KIND if announced.purpose is UploadPurpose.EVALUATE else None
        with self._receiver.open_upload(announced, context.cancel) as incoming:
            crash_point(CrashPoint.UPLOAD_ADMITTED)
            digest = receive_payload(messages, incoming, expected=self._data, kind=kind)
            crash_point(CrashPoint.UPLOAD_RECEIVED)
            answered = self._receiver.accept_upload(incoming, digest)
        crash_point(CrashPoint.UPLOAD_ACCEPTED)
        while answered is None:
            answered = self._owner.answer(incoming.admitted, self._heartbeat_seconds)
            if answered is None:
                # The client counts the silence, and cannot know how long others take.
                yield pb.TrainBatchResponse()
        answer, cut_gradient = answered
        response = pb.TrainBatchResponse(answer=answer_to_proto(answer))
        record = incoming.admitted.client
        self._owner.note(record, "down", kind="losses", size_bytes=response.ByteSize())
        yield response
        if cut_gradient is not None:
            yield from self._send(record, cut_gradient)

    def _send(self, record: ClientRecord, entry: SpoolEntry) -> Iterator[pb.TrainBatchResponse]:
        """Stream lambda from the spool: chunks of one tensor, then length and digest."""
        account = StreamAccount()
        for piece in entry.pieces(USUAL_CHUNK_BYTES):
            account.add(piece)
            self._owner.note(record, "down", kind="cut_gradient", size_bytes=len(piece))
            yield pb.TrainBatchResponse(chunk=pb.TensorChunk(tensor_index=0, data=piece))
        yield pb.TrainBatchResponse(trailer=pb.Trailer(length_bytes=account.length_bytes, sha256=account.sha256))

    def SubmitUpdate(self, messages: Iterator[pb.SubmitUpdateRequest], context: Any) -> pb.SubmitUpdateResponse:  # noqa: N802
        header: pb.UpdateHeader = receive_header(messages)
        announced = self._announced(header, certified_name(context), _update_header)
        with self._receiver.open_update(announced, context.cancel) as incoming:
            crash_point(CrashPoint.UPDATE_ADMITTED)
            digest = receive_payload(messages, incoming, expected=self._data, kind="update")
            crash_point(CrashPoint.UPDATE_RECEIVED)
            self._receiver.accept_update(
                incoming, digest, weights_sha256=header.weights_sha256, statistics=statistics_from_proto(header.statistics)
            )
        crash_point(CrashPoint.UPDATE_ACCEPTED)
        record = incoming.admitted.client
        response = pb.SubmitUpdateResponse(losses=[loss_to_proto(loss) for loss in self._owner.losses_for(record, header.losses_seen)])
        self._owner.note(record, "down", kind="losses", size_bytes=response.ByteSize())
        return response

    def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveResponse:  # noqa: N802
        record = self._owner.client(request.session, certified_name(context))
        self._owner.note(record, "up", kind="control", size_bytes=request.ByteSize())
        crash_point(CrashPoint.LEAVE_RECEIVED)
        self._owner.leave(record, request.reason, PeakMemory(request.peak_memory_bytes, request.peak_anonymous_bytes))
        return pb.LeaveResponse()

    def _announced(self, header: Any, speaker: str, parse: Callable[[Any, str], ParsedHeader]) -> ParsedHeader:
        """Read a stream's header; whoever has no session hears that, whatever else is wrong."""
        try:
            return parse(header, speaker)
        except RefusedError:
            self._owner.client(header.session, speaker)
            raise

    def _count_control(self, record: ClientRecord, request: Any, response: Any) -> None:
        self._owner.note(record, "up", kind="control", size_bytes=request.ByteSize())
        self._owner.note(record, "down", kind="control", size_bytes=response.ByteSize())


def _upload_header(header: pb.UploadHeader, speaker: str) -> UploadHeader:
    return UploadHeader(
        session=header.session,
        speaker=speaker,
        run_id=header.run_id,
        round=round_from_proto(header.round),
        tensors=tensor_specs_from_proto(header.tensors),
        total_bytes=header.total_bytes,
        losses_seen=header.losses_seen,
        purpose=purpose_from_proto(header.purpose),
        local_step=header.local_step,
        num_probes=header.num_probes,
    )


def _update_header(header: pb.UpdateHeader, speaker: str) -> UpdateHeader:
    return UpdateHeader(
        session=header.session,
        speaker=speaker,
        run_id=header.run_id,
        round=round_from_proto(header.round),
        tensors=tensor_specs_from_proto(header.tensors),
        total_bytes=header.total_bytes,
        losses_seen=header.losses_seen,
        steps=header.steps_completed,
        encoding=encoding_from_proto(header.encoding),
    )
