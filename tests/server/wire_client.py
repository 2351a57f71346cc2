"""A client that speaks the generated stub over a real socket, well-behaved or as wrong as a test wants."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from heron_client.network.channel import SealingChannel
from heron_common.error_catalog import CATALOG, ERROR_CODE_METADATA, ErrorCode
from heron_common.protocol.grpc_options import channel_options
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingStub
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer

DEADLINE = 20.0


class WireClient:
    """One client: joins, asks, uploads, submits. Close it, or use it as a context."""

    def __init__(self, target: str, name: str = "a", identity_key: str | None = None, channel: grpc.Channel | None = None) -> None:
        self.name = name
        self.identity_key = identity_key or name * 16
        self.channel = channel or grpc.insecure_channel(target, options=channel_options())
        self.stub = SplitTrainingStub(SealingChannel(self.channel))
        self.session = ""
        self.run_id = ""
        self.assignment = pb.Assignment()
        self.cut: tuple[int, ...] = ()

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def join(self, **overrides: Any) -> pb.JoinResponse:
        request = {"protocol_version": PROTOCOL_VERSION, "client_name": self.name, "identity_key": self.identity_key, **overrides}
        response = self.stub.Join(pb.JoinRequest(**request), timeout=DEADLINE)
        self.session, self.run_id, self.cut = response.session, response.run_id, tuple(response.model.cut.shape)
        self.num_classes = response.data_specification.num_classes
        self.num_front = sum(int(np.prod(t.shape)) for t in response.model.client_model)
        return response

    def ask(self, **fields: Any) -> pb.NextAssignmentResponse:
        return self.stub.NextAssignment(pb.NextAssignmentRequest(session=self.session, **fields), timeout=DEADLINE)

    def await_assignment(self, after: pb.RoundReference | None = None) -> pb.Assignment:
        """Poll until there is an assignment (of another round than `after`)."""

        def probe() -> pb.Assignment | None:
            found = self.ask().assignment
            return found if found.HasField("round") and found.round != after else None

        self.assignment = eventually(probe, what="an assignment")
        return self.assignment

    def blob(self, sha256: str, offset: int = 0) -> bytes:
        request = pb.FetchBlobRequest(session=self.session, sha256=sha256, offset_bytes=offset)
        return b"".join(part.data for part in self.stub.FetchBlob(request, timeout=DEADLINE))

    # ---- uploads ----------------------------------------------------------------------------------------------------------------

    @property
    def num_probes(self) -> int:
        if self.assignment.plan.objective != pb.OBJECTIVE_SERVER:
            return 0
        return 1 if self.assignment.plan.difference == pb.FINITE_DIFFERENCE_FORWARD else 2

    def batch(self, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return activations (base and probes) and labels of one step."""
        generator = np.random.default_rng(seed)
        rows = self.assignment.plan.batch_size
        z = generator.standard_normal((rows * (1 + self.num_probes), *self.cut)).astype("<f4")
        return z, generator.integers(0, self.num_classes, rows).astype("<i8")

    def upload_header(self, step: int, **overrides: Any) -> pb.UploadHeader:
        z, y = self.batch()
        fields: dict[str, Any] = {
            "session": self.session,
            "run_id": self.run_id,
            "round": self.assignment.round,
            "purpose": pb.UPLOAD_PURPOSE_PROBE if self.num_probes else pb.UPLOAD_PURPOSE_TRAIN,
            "local_step": step,
            "num_probes": self.num_probes,
            "tensors": [
                pb.TensorSpec(name="activations", dtype=pb.DTYPE_FLOAT32, shape=z.shape),
                pb.TensorSpec(name="labels", dtype=pb.DTYPE_INT64, shape=y.shape),
            ],
            "total_bytes": z.nbytes + y.nbytes,
        }
        return pb.UploadHeader(**{**fields, **overrides})

    def upload_parts(self, step: int, seed: int = 0, **header: Any) -> list[pb.TrainBatchRequest]:
        z, y = self.batch(seed)
        return upload_messages(self.upload_header(step, **header), [z.tobytes(), y.tobytes()])

    def send_upload(self, messages: Any) -> pb.UploadAnswer:
        answers = list(self.stub.TrainBatch(iter(messages), timeout=DEADLINE))
        assert len(answers) == 1
        return answers[0].answer

    def upload(self, step: int, seed: int = 0, **header: Any) -> pb.UploadAnswer:
        return self.send_upload(self.upload_parts(step, seed, **header))

    # ---- updates ----------------------------------------------------------------------------------------------------------------

    def update_parts(self, weights: np.ndarray[Any, Any] | None = None, **overrides: Any) -> list[pb.SubmitUpdateRequest]:
        flat = np.zeros(self.num_front, "<f4") if weights is None else weights.astype("<f4")
        fields: dict[str, Any] = {
            "session": self.session,
            "run_id": self.run_id,
            "round": self.assignment.round,
            "steps_completed": self.assignment.plan.local_steps,
            "encoding": pb.UPDATE_ENCODING_DENSE,
            "tensors": [pb.TensorSpec(name="client_model", dtype=pb.DTYPE_FLOAT32, shape=flat.shape)],
            "total_bytes": flat.nbytes,
        }
        header = pb.UpdateHeader(**{**fields, **overrides})
        chunk, end = pb.TensorChunk(tensor_index=0, data=flat.tobytes()), trailer_of([flat.tobytes()])
        return [pb.SubmitUpdateRequest(header=header), pb.SubmitUpdateRequest(chunk=chunk), pb.SubmitUpdateRequest(trailer=end)]

    def update(self, weights: np.ndarray[Any, Any] | None = None, **overrides: Any) -> pb.SubmitUpdateResponse:
        return self.stub.SubmitUpdate(iter(self.update_parts(weights, **overrides)), timeout=DEADLINE)

    def run_round(self, weights: np.ndarray[Any, Any] | None = None, **update: Any) -> None:
        """Take part in a whole round."""
        self.await_assignment(self.assignment.round if self.assignment.HasField("round") else None)
        for step in range(self.assignment.plan.local_steps):
            self.upload(step)
        self.update(weights, **update)


def trailer_of(pieces: Sequence[bytes]) -> pb.Trailer:
    data = b"".join(pieces)
    return pb.Trailer(length_bytes=len(data), sha256=hashlib.sha256(data).digest())


def upload_messages(
    header: pb.UploadHeader, tensors: Sequence[bytes], trailer: pb.Trailer | None = None, indices: Sequence[int] | None = None
) -> list[pb.TrainBatchRequest]:
    """Return a stream: the header, a chunk for each tensor, and the trailer, the true one unless another is given."""
    numbers = indices if indices is not None else range(len(tensors))
    chunks = [
        pb.TrainBatchRequest(chunk=pb.TensorChunk(tensor_index=index, data=data)) for index, data in zip(numbers, tensors, strict=True)
    ]
    return [pb.TrainBatchRequest(header=header), *chunks, pb.TrainBatchRequest(trailer=trailer or trailer_of(tensors))]


@contextmanager
def refused(server: RunningServer, code: ErrorCode) -> Iterator[pytest.ExceptionInfo[grpc.RpcError]]:
    """Expect the call inside to be refused with this code, counted once, and to leave nothing behind in the spool."""
    used, files, counted = server.spooled_bytes, server.spooled_files, server.rejections(code)
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    assert metadata_of(caught.value)[ERROR_CODE_METADATA] == code.value, caught.value.details()
    assert caught.value.code() is grpc.StatusCode[CATALOG[code].grpc_status]
    assert caught.value.details()
    assert server.rejections(code) == counted + 1
    assert server.spooled_bytes == used
    assert server.spooled_files == files


def metadata_of(error: grpc.RpcError) -> dict[str, str]:
    return dict(error.trailing_metadata() or ())


class OpenStream:
    """An upload whose messages go out one by one, when the test says so."""

    def __init__(self, client: WireClient, timeout: float | None = DEADLINE) -> None:
        self._messages: queue.SimpleQueue[pb.TrainBatchRequest | None] = queue.SimpleQueue()
        self.call = client.stub.TrainBatch(iter(self._messages.get, None), timeout=timeout)

    def send(self, *messages: pb.TrainBatchRequest) -> OpenStream:
        for message in messages:
            self._messages.put(message)
        return self

    def finish(self) -> pb.UploadAnswer:
        self._messages.put(None)
        (answer,) = [response.answer for response in self.call]
        return answer

    def cancel(self) -> None:
        self.call.cancel()
        self._messages.put(None)


def joined(server: RunningServer, *names: str) -> list[WireClient]:
    """Let clients join."""
    clients = [WireClient(server.target, name) for name in names]
    for client in clients:
        client.join()
    return clients


def assigned(server: RunningServer, *names: str) -> list[WireClient]:
    """Let clients join and wait for what they are to do."""
    clients = joined(server, *names)
    for client in clients:
        client.await_assignment()
    return clients
