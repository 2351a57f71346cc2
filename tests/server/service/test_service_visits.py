"""Clients that only check their data: told the run and given its tokenizer, never waited for, never taken in."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import pytest

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.process.clock import ManualClock
from heron_common.specification.model_spec import BlobReference
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.rounds.state import Phase
from heron_server.rounds.visits import MAX_VISITS, VISITS_BY_ADDRESS, VISITS_BY_CERTIFICATE, Visits
from heron_server.service.identity import address_of
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


def test_a_crowd_of_visits_from_one_address_ends_nobody_elses(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as honest, WireClient(server.target) as stranger:
        program = honest.join(only_checks=True).programs[0].blob
        for _ in range(VISITS_BY_ADDRESS - 1):
            stranger.join(only_checks=True)
        with refused(server, ErrorCode.TOO_MANY_CLIENTS) as caught:
            stranger.join(only_checks=True)
        assert f"{VISITS_BY_ADDRESS} clients of the same address" in caught.value.details()
        assert len(honest.blob(program.sha256)) == program.size_bytes


def test_what_one_device_opens_is_counted_against_its_certificate_alone() -> None:
    visits = Visits(ManualClock(), silence_seconds=30.0)
    for _ in range(VISITS_BY_CERTIFICATE):
        visits.open("a", "10.0.0.1")
    with pytest.raises(RefusedError, match="of the same certificate"):
        visits.open("a", "10.0.0.2")
    assert visits.open("b", "10.0.0.1").speaker == "b"


def test_a_silent_visit_makes_room_and_one_that_is_used_does_not() -> None:
    clock = ManualClock()
    visits = Visits(clock, silence_seconds=30.0)
    used, silent = (visits.open(address="10.0.0.1").session for _ in range(2))
    for _ in range(VISITS_BY_ADDRESS - 2):
        visits.open(address="10.0.0.1")
    clock.advance(30.0)
    assert visits.of_session(used) is not None
    visits.open(address="10.0.0.1")
    assert visits.of_session(silent) is None and visits.of_session(used) is not None
    assert len(visits) == VISITS_BY_ADDRESS


def test_all_visits_together_have_a_bound_and_leave_nothing_behind() -> None:
    visits = Visits(ManualClock(), silence_seconds=30.0)
    sessions = [visits.open(address=f"10.0.{number // 250}.{number % 250}").session for number in range(MAX_VISITS)]
    with pytest.raises(RefusedError, match=f"{MAX_VISITS} clients"):
        visits.open(address="10.9.9.9")
    for session in sessions:
        visits.end(session)
        visits.end(session)
    assert (len(visits), visits._by_origin, visits._origins) == (0, {}, {})


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:4567", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4567", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:4567", "fe80::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:4567", "10.1.2.3"),
        ("unix:", "unix"),
    ],
)
def test_an_address_is_what_a_device_cannot_change_at_will(peer: str, address: str) -> None:
    class Context:
        def peer(self) -> str:
            return peer

    assert address_of(Context()) == address
