"""The stub without a network: what a client meets is what gRPC would let it meet, through the client's own transport."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from heron_cli.simulation.loopback import LoopbackError, LoopbackStub
from heron_client.network.transport import Transport
from heron_common.error_catalog import CATALOG, ERROR_CODE_METADATA, RETRY_PUSHBACK_METADATA, ErrorCode
from heron_common.errors import RefusedError, TransportError
from heron_common.protocol.messages import PeakMemory
from heron_proto.v1 import split_training_pb2 as pb
from heron_proto.v1.split_training_pb2_grpc import SplitTrainingServicer
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer
from tests.server.wire_client import OpenStream, WireClient, metadata_of

Serve = Callable[..., RunningServer]


class LoopbackClient(WireClient):
    """The tests' client of the wire, on the stub instead of a socket."""

    def __init__(self, server: RunningServer, name: str = "a") -> None:
        super().__init__(server.target, name)
        self.stub = loopback(server)  # type: ignore[assignment]


def loopback(server: RunningServer) -> LoopbackStub:
    return LoopbackStub(server.parts.servicer, server.parts.on_refusal, server.parts.ledger.sync)


def transport(server: RunningServer, refusals: list[ErrorCode] | None = None) -> Transport:
    seen = refusals if refusals is not None else []
    return Transport("in memory", count_bytes=lambda *_: None, count_refusal=seen.append, connect=lambda: (loopback(server), lambda: None))


@pytest.fixture
def client(serve: Serve) -> Iterator[LoopbackClient]:
    with LoopbackClient(serve()) as joined:
        joined.join()
        yield joined


def test_the_stub_has_every_method_of_the_service(serve: Serve) -> None:
    stub = loopback(serve())
    for method in pb.DESCRIPTOR.services_by_name["SplitTraining"].methods:
        assert callable(getattr(stub, method.name))


def test_a_refusal_keeps_its_code_sentence_and_status_and_is_counted_on_both_sides(serve: Serve) -> None:
    server, refusals = serve(), list[ErrorCode]()
    way = transport(server, refusals)
    with pytest.raises(RefusedError) as in_memory:
        way.join("not a name!", "k" * 32, 1)
    with WireClient(server.target, "b") as wire, pytest.raises(grpc.RpcError) as on_the_wire:
        wire.join(client_name="not a name!")
    assert in_memory.value.code is ErrorCode.INVALID_NAME and refusals == [ErrorCode.INVALID_NAME]
    assert in_memory.value.sentence == on_the_wire.value.details()
    assert server.rejections(ErrorCode.INVALID_NAME) == 2


@pytest.mark.parametrize("kind", ["unary", "stream out", "stream in", "both"])
def test_every_kind_of_call_ends_with_the_catalogs_status(client: LoopbackClient, kind: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "unary": lambda: client.stub.Leave(pb.LeaveRequest(session="unknown"), timeout=1.0),
        "stream out": lambda: list(client.stub.FetchBlob(pb.FetchBlobRequest(session="unknown"), timeout=1.0)),
        "stream in": lambda: client.stub.SubmitUpdate(
            iter([pb.SubmitUpdateRequest(header=pb.UpdateHeader(session="unknown"))]), timeout=1.0
        ),
        "both": lambda: list(client.stub.TrainBatch(iter([pb.TrainBatchRequest(header=pb.UploadHeader(session="unknown"))]), timeout=1.0)),
    }
    with pytest.raises(LoopbackError) as caught:
        calls[kind]()
    assert caught.value.code() is grpc.StatusCode[CATALOG[ErrorCode.SESSION_UNKNOWN].grpc_status]
    assert metadata_of(caught.value)[ERROR_CODE_METADATA] == "session_unknown"
    assert "join again" in caught.value.details()


def test_when_to_come_back_travels_along(serve: Serve) -> None:
    server = serve()
    with LoopbackClient(server) as client:
        client.join()
        client.await_assignment()
        stream = OpenStream(client).send(client.upload_parts(0)[0])

        def wait_for_the_answer() -> None:
            with suppress(grpc.RpcError):
                list(stream.call)

        waiting = threading.Thread(target=wait_for_the_answer, daemon=True)
        waiting.start()
        record = server.state.registry.by_name["a"]
        eventually(lambda: record.stream, what="the first stream to open")
        with pytest.raises(LoopbackError) as caught:
            client.upload(1)
        assert metadata_of(caught.value)[ERROR_CODE_METADATA] == "stream_busy"
        assert metadata_of(caught.value)[RETRY_PUSHBACK_METADATA] == "500"
        stream.cancel()
        waiting.join(10.0)
        assert not waiting.is_alive() and record.stream is None


def test_a_cancelled_upload_leaves_nothing_behind_and_may_be_sent_again(client: LoopbackClient) -> None:
    client.await_assignment()
    parts = client.upload_parts(0)
    call: list[Any] = []

    def messages() -> Iterator[pb.TrainBatchRequest]:
        yield parts[0]
        call[0].cancel()

    call.append(client.stub.TrainBatch(messages(), timeout=1.0))
    with pytest.raises(LoopbackError) as caught:
        list(call[0])
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert client.upload(0).server_version == 0


def test_a_cancelled_result_is_what_grpc_calls_it_and_a_transport_error_to_the_client(serve: Serve) -> None:
    server = serve()
    call = loopback(server).NextAssignment.future(pb.NextAssignmentRequest(), timeout=1.0)  # type: ignore[attr-defined]
    call.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    way = transport(server)
    way.join("a", "k" * 32, 1)
    way.cancel()
    with pytest.raises(TransportError, match="cancelled"):
        way.next_step(None)


def test_a_stream_that_breaks_on_the_clients_side_ends_the_call_on_both(client: LoopbackClient, caplog: pytest.LogCaptureFixture) -> None:
    client.await_assignment()

    def broken() -> Iterator[pb.TrainBatchRequest]:
        yield client.upload_parts(0)[0]
        raise ValueError("out of paper")

    with pytest.raises(LoopbackError) as caught:
        client.send_upload(broken())
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert "the client's stream of messages failed" in caplog.text
    client.upload(0)


def test_an_unexpected_error_tells_the_client_nothing_but_that(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SplitTrainingServicer):
        def Join(self, request: Any, context: Any) -> Any:
            raise ZeroDivisionError("secret")

    seen: list[ErrorCode] = []
    with pytest.raises(LoopbackError) as caught:
        LoopbackStub(Broken(), seen.append, lambda: None).Join(pb.JoinRequest())  # type: ignore[attr-defined]
    assert caught.value.code() is grpc.StatusCode.INTERNAL and "secret" not in caught.value.details()
    assert seen == [ErrorCode.INTERNAL] and "secret" in caplog.text


def test_a_closed_stub_is_a_server_out_of_reach(serve: Serve) -> None:
    server = serve()
    stub = loopback(server)
    way = Transport("in memory", count_bytes=lambda *_: None, count_refusal=lambda _: None, connect=lambda: (stub, stub.close))
    way.join("a", "k" * 32, 1)
    way.close()
    with pytest.raises(TransportError, match="the server has stopped"):
        way.leave("done", PeakMemory())


def test_messages_are_handed_over_as_they_are() -> None:
    received: list[Any] = []

    class Keeping(SplitTrainingServicer):
        def Leave(self, request: Any, context: Any) -> Any:
            received.append(request)
            return pb.LeaveResponse()

    request = pb.LeaveRequest(reason="no copies")
    LoopbackStub(Keeping(), lambda _: None, lambda: None).Leave(request)  # type: ignore[attr-defined]
    assert received[0] is request


def test_the_same_round_counts_the_same_bytes_as_over_a_socket(serve: Serve) -> None:
    tallies = []
    for number, kind in enumerate((LoopbackClient, WireClient)):
        server = serve(run_dir=f"run-{number}")
        with kind(server) if kind is LoopbackClient else kind(server.target) as one:  # type: ignore[arg-type]
            one.join()
            one.run_round()
            record = server.state.registry.by_name["a"]
            # How often a client asks for work, and which answer brings which loss, is a matter of time, not of the round.
            tallies.append([Counter({**tally, "control": 0, "losses": 0}) for tally in (record.bytes_up, record.bytes_down)])
    assert tallies[0] == tallies[1]
    assert tallies[0][0]["activations"] > 0
