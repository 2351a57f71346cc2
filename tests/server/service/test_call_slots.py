"""Strangers that hold calls: no message, half of one, an answer that is never read. Honest clients' asks go on, and nothing is held for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heron_common.error_catalog import ERROR_CODE_METADATA, ErrorCode
from heron_common.protocol.seal import seal
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.certificates.authority import Authority
from heron_server.service.call_pool import CallPool, OpenCall, PoolFullError
from heron_server.service.call_slots import STRANGERS, WATCHERS
from tests.harness.certificates import issued, secure_channel, unchecked
from tests.harness.polling import eventually
from tests.harness.raw_http2 import flood, message_of
from tests.server.running_server import RunningServer
from tests.server.wire_client import DEADLINE, WireClient, metadata_of

Serve = Callable[..., RunningServer]

SERVICES = (pb.DESCRIPTOR.services_by_name["SplitTraining"], health_pb2.DESCRIPTOR.services_by_name["Health"])
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
WAYS = ["no message", "half a message", "answer never read"]


def whole_message(path: str, visit: pb.JoinResponse) -> bytes:
    """Return a good message of a method, of a stranger that visits."""
    requests = {
        "Join": pb.JoinRequest(protocol_version=PROTOCOL_VERSION, only_checks=True),
        "FetchBlob": pb.FetchBlobRequest(session=visit.session, sha256=visit.programs[0].blob.sha256),
        "NextAssignment": pb.NextAssignmentRequest(session=visit.session),
        "TrainBatch": pb.TrainBatchRequest(header=pb.UploadHeader(session=visit.session)),
        "SubmitUpdate": pb.SubmitUpdateRequest(header=pb.UpdateHeader(session=visit.session)),
        "Leave": pb.LeaveRequest(session="nobody's"),
    }
    name = path.rpartition("/")[2]
    return message_of(seal(requests[name].SerializeToString()) if name in requests else health_pb2.HealthCheckRequest().SerializeToString())


def sent_in(way: str, path: str, visit: pb.JoinResponse) -> bytes:
    if way == "no message":
        return b""
    return message_of(bytes(1000))[:500] if way == "half a message" else whole_message(path, visit)


@pytest.mark.parametrize("way", WAYS)
def test_no_method_lets_strangers_take_the_slots_of_others(serve: Serve, way: str) -> None:
    server = serve(trains=False, clients=2, max_clients=2)
    with WireClient(server.target) as honest, WireClient(server.target, "newcomer") as newcomer, WireClient(server.target) as stranger:
        honest.join()
        visit = stranger.join(only_checks=True)
        for path in METHODS:
            with flood(server.target, path, sent_in(way, path, visit), STRANGERS + WATCHERS + 40):
                for _ in range(3):
                    assert honest.ask().WhichOneof("next"), path
                newcomer.join()
                newcomer.stub.Leave(pb.LeaveRequest(session=newcomer.session), timeout=DEADLINE)
                status = health_pb2_grpc.HealthStub(newcomer.channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE).status
                assert status == health_pb2.HealthCheckResponse.SERVING, path


def test_exhaustion_is_counted_and_said_once(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(trains=False)
    with caplog.at_level(logging.WARNING), flood(server.target, METHODS[0], b"", STRANGERS + 40):
        eventually(lambda: server.rejections(ErrorCode.TOO_MANY_CALLS) >= 40, what="calls that were cut off")
    (line,) = [record for record in caplog.records if "strangers take all slots" in record.message]
    assert line.__dict__["slots"] == STRANGERS


def silent_call(channel: grpc.Channel, path: str, quiet: threading.Event) -> grpc.Future:
    def nothing() -> Iterator[bytes]:
        quiet.wait(60)
        yield from ()

    call = channel.stream_unary(path, request_serializer=bytes, response_deserializer=bytes, _registered_method=False)
    return call.future(nothing(), timeout=60)


def test_a_call_without_a_message_ends_in_time(serve: Serve) -> None:
    server, quiet = serve(trains=False), threading.Event()
    slots = server.parts.network._slots
    for number, path in enumerate(METHODS, 1):
        with WireClient(server.target) as stranger:
            call = silent_call(stranger.channel, path, quiet)
            eventually(lambda: len(slots._open) == 1, what="the call's headers")
            server.advance(10.0)
            assert not call.done(), "a process that stood still looks twice"
            server.advance(0.2)
            eventually(call.done, what="the end of the call")
            eventually(lambda: not slots._open, what="nothing left behind")
        assert call.code() is grpc.StatusCode.CANCELLED
        assert server.rejections(ErrorCode.TRUNCATED) == number
    quiet.set()


def test_an_answer_that_is_never_taken_ends_in_time(serve: Serve) -> None:
    """Of the methods that answer a visitor with a message; a refusal has none, and ends its call whatever is read."""
    server = serve(trains=False)
    slots = server.parts.network._slots
    with WireClient(server.target) as stranger:
        visit = stranger.join(only_checks=True)
        eventually(lambda: not slots._open, what="the end of the join")
        for name in ("Join", "FetchBlob", "NextAssignment", "Check", "Watch"):
            (path,) = (path for path in METHODS if path.endswith(f"/{name}"))
            with flood(server.target, path, whole_message(path, visit), 4):
                eventually(lambda: len(slots._open) == 4 and all(call.has_spoken for call in tuple(slots._open)), what=path)
                for _ in range(2):
                    server.advance(server.config.rounds.liveness_seconds)
                eventually(lambda: not slots._open, what=f"the end of {path}")


def test_a_client_takes_its_own_share_only(serve: Serve) -> None:
    """The calls of one session beyond what a client that came back may have end its own."""
    server = serve(trains=False, clients=2, max_clients=2)
    with WireClient(server.target, "greedy") as greedy, WireClient(server.target, "honest") as honest:
        greedy.join()
        honest.join()
        greedy.await_assignment()
        header = pb.TrainBatchRequest(header=greedy.upload_header(0))
        with flood(server.target, "/heron.v1.SplitTraining/TrainBatch", message_of(seal(header.SerializeToString())), 40):
            for step in range(honest.await_assignment().plan.local_steps):
                honest.upload(step)
            honest.update()


def test_a_certificate_is_looked_at_before_any_message(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    server, quiet = serve(trains=False, tls_dir=authority.server_directory), threading.Event()
    credentials = unchecked(issued(authority, "bed-1"))
    authority.revoke("bed-1")
    channels = [secure_channel(server.target, credentials) for _ in METHODS]
    try:
        for channel, path in zip(channels, METHODS, strict=True):
            call = silent_call(channel, path, quiet)
            with pytest.raises(grpc.RpcError) as caught:
                call.result(timeout=DEADLINE)
            assert metadata_of(caught.value)[ERROR_CODE_METADATA] == ErrorCode.CERTIFICATE_REVOKED.value, path
    finally:
        quiet.set()
        for channel in channels:
            channel.close()


def test_messages_that_do_not_parse_are_counted_and_not_traced(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server, sent = serve(trains=False), list(product(METHODS, [b"\x0a", b"\xff\xff"]))
    with caplog.at_level(logging.WARNING), WireClient(server.target) as stranger:
        for path, data in sent:
            call = stranger.channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes, _registered_method=False)
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([data if "Health" in path else seal(data)]), timeout=DEADLINE))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert metadata_of(caught.value)[ERROR_CODE_METADATA] == ErrorCode.MALFORMED.value
    assert server.rejections(ErrorCode.MALFORMED) == len(sent)
    assert not [record for record in caplog.records if record.exc_info]
    assert len(caplog.records) <= 1


def test_a_method_that_nobody_wrote_is_no_error_of_ours(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(trains=False)
    with caplog.at_level(logging.WARNING), WireClient(server.target) as stranger, pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(stranger.channel).List(health_pb2.HealthListRequest(), timeout=DEADLINE)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not caplog.records


def calls(*holders: str) -> list[OpenCall]:
    return [OpenCall(holder, lambda: None, 0.0) for holder in holders]


def test_whoever_holds_most_makes_room_and_of_those_who_waits_longest() -> None:
    pool, (one, two, three, honest, newcomer) = CallPool(4), calls("a", "b", "b", "c", "d")
    for call in (one, two, three, honest):
        assert pool.add(call) is None
    assert pool.add(newcomer) is two
    two.works()
    assert pool.add(calls("e")[0]) is one, "all hold one now, and this has waited longest"


def test_calls_that_the_server_works_on_are_not_ended() -> None:
    pool, (one, two, newcomer) = CallPool(2), calls("a", "b", "c")
    for call in (one, two):
        pool.add(call)
        call.works()
    with pytest.raises(PoolFullError):
        pool.add(newcomer)
    two.waits(1.0)
    assert pool.add(newcomer) is two
    pool.remove(newcomer)
    pool.remove(newcomer)
    assert len(pool) == 1
