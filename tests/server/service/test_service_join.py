"""Joining over a real socket: who is let in, what a member is told, which blobs it may fetch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import grpc
import numpy as np
import onnx
import pytest

from heron_common.error_catalog import RETRY_PUSHBACK_METADATA, ErrorCode
from heron_common.version import PROTOCOL_VERSION
from heron_proto.v1 import split_training_pb2 as pb
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer
from tests.server.wire_client import WireClient, metadata_of, refused

Serve = Callable[..., RunningServer]


def test_a_member_is_told_the_run_and_fetches_what_it_needs(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        joined = client.join(num_examples=12)
        assert joined.run_id == server.state.facts.run_id
        assert tuple(joined.data_specification.input_shape) == (1, 4, 4) and joined.data_specification.num_classes == 3
        assert joined.num_rounds == server.config.run.rounds
        assert 0 < joined.heartbeat_seconds < server.config.rounds.liveness_seconds / 2
        for program in joined.programs:
            data = client.blob(program.blob.sha256)
            assert hashlib.sha256(data).hexdigest() == program.blob.sha256 and len(data) == program.blob.size_bytes
            onnx.checker.check_model(onnx.load_from_string(data))
        assignment = client.await_assignment()
        weights = client.blob(assignment.client_model.sha256)
        assert len(weights) == assignment.client_model.size_bytes == 4 * client.num_front
        assert np.isfinite(np.frombuffer(weights, "<f4")).all()
        assert client.blob(assignment.client_model.sha256, offset=8) == weights[8:]
        assert client.blob(assignment.client_model.sha256, offset=len(weights)) == b""
        assert server.state.registry.by_name["a"].num_examples == 12


def test_an_unknown_session_is_refused_everywhere(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        client.join()
        client.await_assignment()
        client.session = "0" * 32
        calls = [
            lambda: client.ask(),
            lambda: client.blob("0" * 64),
            lambda: client.upload(0),
            lambda: client.update(),
            lambda: client.stub.Leave(pb.LeaveRequest(session=client.session)),
        ]
        for call in calls:
            with refused(server, ErrorCode.SESSION_UNKNOWN):
                call()


def test_another_protocol_version_is_refused_with_both_versions(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        for version in (0, PROTOCOL_VERSION + 1, 2**32 - 1):
            with refused(server, ErrorCode.PROTOCOL_VERSION) as caught:
                client.join(protocol_version=version)
            assert str(version) in caught.value.details() and str(PROTOCOL_VERSION) in caught.value.details()
    assert server.state.registry.num_live == 0


def test_a_bad_name_or_key_is_refused(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        for name in ("", "../../etc/passwd", "a b", "x" * 200, "naïve", "a\x00b"):
            with refused(server, ErrorCode.INVALID_NAME):
                client.join(client_name=name)
        with refused(server, ErrorCode.INVALID_NAME):
            client.join(identity_key="short")
        assert client.join().session


def test_a_second_live_client_with_the_same_name_is_refused_and_the_first_goes_on(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as first, WireClient(server.target, identity_key="other" * 5) as second:
        first.join()
        with refused(server, ErrorCode.NAME_IN_USE):
            second.join()
        first.await_assignment()


def test_the_same_identity_takes_its_session_over_and_stays_in_the_round(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as first, WireClient(server.target) as second:
        first.join()
        before = first.await_assignment()
        second.join()
        with refused(server, ErrorCode.SESSION_UNKNOWN):
            first.ask()
        assert second.await_assignment() == before


def test_a_full_server_says_when_to_come_back(serve: Serve) -> None:
    server = serve(trains=False, max_clients=1)
    with WireClient(server.target, "a") as first, WireClient(server.target, "b") as second:
        first.join()
        with refused(server, ErrorCode.TOO_MANY_CLIENTS) as caught:
            second.join()
        assert int(metadata_of(caught.value)[RETRY_PUSHBACK_METADATA]) > 0
        first.stub.Leave(pb.LeaveRequest(session=first.session, reason="done"))
        assert second.join().session


def test_only_blobs_that_were_named_to_this_client_are_served(serve: Serve) -> None:
    server = serve(trains=False, clients=1)
    secret = server.parts.owner._blobs.put(b"not for clients")
    with WireClient(server.target, "a") as member, WireClient(server.target, "late") as outsider:
        member.join()
        assignment = member.await_assignment()
        outsider.join()
        assert outsider.ask().HasField("wait")
        for client, sha256 in ((member, secret.sha256), (member, ""), (member, "../x"), (outsider, assignment.client_model.sha256)):
            with refused(server, ErrorCode.BLOB_UNKNOWN):
                client.blob(sha256)
        with refused(server, ErrorCode.OVERSIZED):
            member.blob(assignment.client_model.sha256, offset=assignment.client_model.size_bytes + 1)


def test_a_client_that_left_is_unknown_and_no_longer_waited_for(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        client.join()
        client.await_assignment()
        client.stub.Leave(pb.LeaveRequest(session=client.session, reason="battery", peak_memory_bytes=77, peak_anonymous_bytes=55))
        assert server.state.registry.num_live == 0
        record = server.state.registry.by_name["a"]
        assert (record.peak_memory_bytes, record.peak_anonymous_bytes) == (77, 55)
        assert server.sample("dropped_clients_total", reason="left") == 1
        with refused(server, ErrorCode.SESSION_UNKNOWN):
            client.ask()


def test_a_heartbeat_for_a_round_that_is_not_open_is_told_so(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        client.join()
        current = client.await_assignment().round
        assert client.ask(training=current).HasField("assignment")
        for stale in (pb.RoundReference(round_index=0, attempt=9), pb.RoundReference(round_index=3, attempt=0)):
            with refused(server, ErrorCode.ROUND_OVER):
                client.ask(training=stale)


def test_payload_bytes_are_counted_by_client_and_metric(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        client.join()
        assignment = client.await_assignment()
        weights = client.blob(assignment.client_model.sha256)
        client.upload(0)
        z, y = client.batch()
        record = server.state.registry.by_name["a"]
        eventually(lambda: record.bytes_down["losses"], what="the answer's bytes")
        assert record.bytes_down["weights"] == len(weights)
        assert (record.bytes_up["activations"], record.bytes_up["labels"]) == (z.nbytes, y.nbytes)
        for direction, tally in (("up", record.bytes_up), ("down", record.bytes_down)):
            assert {kind: server.sample("bytes_total", direction=direction, kind=kind) for kind in tally} == dict(tally)


def test_a_client_that_joins_before_the_first_round_may_open_waits(serve: Serve) -> None:
    server = serve(trains=False, opens=False)
    with WireClient(server.target) as client:
        client.join()
        assert client.ask().HasField("wait")
        server.parts.owner.start(server.parts.worker.inputs())
        assert client.await_assignment().round == pb.RoundReference(round_index=0, attempt=0)


def test_a_method_that_does_not_exist_is_unimplemented(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client, pytest.raises(grpc.RpcError) as caught:
        client.channel.unary_unary("/heron.v1.SplitTraining/Shutdown", lambda x: x, lambda x: x, _registered_method=False)(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_client_that_goes_silent_outside_a_round_frees_its_name(serve: Serve) -> None:
    # The replacement of a broken device has its name and another key, and must not be refused for ever.
    server = serve(trains=False, clients=2, min_updates=2)
    with WireClient(server.target) as broken, WireClient(server.target, identity_key="other" * 5) as replacement:
        broken.join()
        assert server.state.registry.num_live == 1
        server.advance(server.config.rounds.liveness_seconds + 1)
        assert server.state.registry.num_live == 0
        assert replacement.join().session
