"""Clients that only check their data: told the run and given its tokenizer, never waited for, never taken in."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import pytest

from heron_common.assignment import BlobReference
from heron_common.error_catalog import ErrorCode
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.rounds.clients import MAX_VISITS
from heron_server.rounds.state import Phase
from tests.server.running_server import RunningServer
from tests.server.wire_client import DEADLINE, WireClient, refused

Serve = Callable[..., RunningServer]
TOKENIZER = b'{"a": "tokenizer"}' * 100


def serve_tokenizer(server: RunningServer) -> str:
    state = server.state
    sha256 = server.parts.owner._blobs.put(TOKENIZER).sha256
    reference = BlobReference(sha256, len(TOKENIZER))
    state.facts = dataclasses.replace(state.facts, data=dataclasses.replace(state.facts.data, tokenizer=reference))
    return sha256


def test_a_visit_opens_no_round_and_is_in_no_list(serve: Serve) -> None:
    server = serve(trains=False)
    state = server.state
    with WireClient(server.target) as visitor:
        joined = visitor.join(only_checks=True, num_examples=7)
        assert joined.run_id == state.facts.run_id
        assert tuple(joined.data_specification.input_shape) == (1, 4, 4)
        assert state.machine.phase is Phase.WAITING
        assert (state.machine.live, state.registry.by_name) == ((), {})
        assert not visitor.ask().HasField("assignment")
        visitor.stub.Leave(pb.LeaveRequest(session=visitor.session, reason="checked its data"), timeout=DEADLINE)
        with refused(server, ErrorCode.SESSION_UNKNOWN):
            visitor.ask()


def test_a_visit_under_a_members_name_leaves_the_member_alone(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as member, WireClient(server.target, identity_key="another-key-of-it") as visitor:
        member.join()
        member.await_assignment()
        visitor.join(only_checks=True)
        visitor.stub.Leave(pb.LeaveRequest(session=visitor.session), timeout=DEADLINE)
        assert member.ask().HasField("assignment")
        visitor.join(only_checks=True)
        visitor.assignment = member.assignment
        with refused(server, ErrorCode.NOT_IN_COHORT):
            visitor.upload(0)
        with refused(server, ErrorCode.NOT_IN_COHORT):
            visitor.update()
        assert member.ask().HasField("assignment")


@pytest.mark.parametrize("only_checks", [False, True])
def test_the_tokenizer_is_served_to_members_and_visitors(serve: Serve, only_checks: bool) -> None:
    server = serve(trains=False)
    sha256 = serve_tokenizer(server)
    with WireClient(server.target) as client:
        specification = client.join(only_checks=only_checks).data_specification
        assert specification.tokenizer == pb.Blob(sha256=sha256, size_bytes=len(TOKENIZER))
        data = client.blob(sha256)
    assert (data, hashlib.sha256(data).hexdigest()) == (TOKENIZER, sha256)
    assert server.sample("bytes_total", direction="down", kind="tokenizer") == len(TOKENIZER)


def test_the_oldest_visit_is_forgotten_for_a_new_one(serve: Serve) -> None:
    server = serve(trains=False)
    registry = server.state.registry
    first = registry.visit().session
    later = [registry.visit().session for _ in range(MAX_VISITS)]
    assert registry.visitor(first) is None
    assert all(registry.visitor(session) is not None for session in later)
