"""Mutual TLS over real sockets, against callers that no honest client resembles: each is refused, and learns nothing of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heron_common.error_catalog import ERROR_CODE_METADATA, ErrorCode
from heron_common.errors import ConfigurationError
from heron_common.files.tls_directory import Credentials, TlsRole
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.certificates.authority import Authority
from tests.harness.certificates import DAY, at, issued, secure_channel, unchecked
from tests.server.running_server import RunningServer
from tests.server.wire_client import DEADLINE, OpenStream, WireClient, metadata_of, refused

Serve = Callable[..., RunningServer]


@pytest.fixture
def secured(serve: Serve, authority: Authority) -> RunningServer:
    return serve(trains=False, clients=2, tls_dir=authority.server_directory)


def client(server: RunningServer, credentials: Credentials | None, name: str, ca: Path | None = None) -> WireClient:
    return WireClient(server.target, name, "k" * 32, secure_channel(server.target, credentials, ca.read_bytes() if ca else b""))


def device(server: RunningServer, authority: Authority, name: str) -> WireClient:
    return client(server, unchecked(issued(authority, name)), name)


def health_of(channel: grpc.Channel) -> int:
    return int(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE).status)


def calls_of(stub_of: WireClient) -> Iterator[Callable[[], object]]:
    yield lambda: stub_of.ask()
    yield lambda: stub_of.blob("0" * 64)
    yield lambda: stub_of.upload(0)
    yield lambda: stub_of.update()
    yield lambda: stub_of.stub.Leave(pb.LeaveRequest(session=stub_of.session), timeout=DEADLINE)


def assert_discloses_nothing(error: grpc.RpcError, server: RunningServer, *names: str) -> None:
    said = f"{error.details()} {metadata_of(error)}"
    facts = server.state.facts
    for secret in (facts.run_id, facts.data.name, *(p.blob.sha256 for p in facts.programs), *names):
        assert secret not in said


def test_a_device_with_a_certificate_takes_part(secured: RunningServer, authority: Authority) -> None:
    with device(secured, authority, "bed-1") as one, device(secured, authority, "bed-2") as two:
        for wire in (one, two):
            wire.join()
        for wire in (one, two):
            wire.run_round()
            assert health_of(wire.channel) == health_pb2.HealthCheckResponse.SERVING
    assert set(secured.state.registry.by_name) == {"bed-1", "bed-2"}


def strangers(authority: Authority, other: Authority) -> dict[str, Credentials | None]:
    at(authority, -400 * DAY).issue("expired")
    at(authority, 10 * DAY).issue("early")
    authority_pem = authority.directory / "ca.pem"
    return {
        "no certificate": None,
        "another authority's": unchecked(issued(other, "bed-1"), ca=authority_pem),
        "expired": unchecked(authority.device_directory("expired")),
        "not yet valid": unchecked(authority.device_directory("early")),
        "the server's own": unchecked(authority.server_directory, TlsRole.SERVER),
    }


def test_the_handshake_refuses_strangers_before_any_call(secured: RunningServer, authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", [])
    with device(secured, authority, "bed-9") as member:
        member.join()
        for what, credentials in strangers(authority, other).items():
            with client(secured, credentials, "bed-9", authority.directory / "ca.pem") as stranger:
                for call in (stranger.join, lambda channel=stranger.channel: health_of(channel)):
                    with pytest.raises(grpc.RpcError) as caught:
                        call()
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, what
                    assert_discloses_nothing(caught.value, secured, "bed-9")
        with WireClient(secured.target) as plain, pytest.raises(grpc.RpcError) as caught:
            plain.join()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert_discloses_nothing(caught.value, secured, "bed-9")
    assert set(secured.state.registry.by_name) == {"bed-9"}


def test_a_device_cannot_take_anothers_name(secured: RunningServer, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    with device(secured, authority, "bed-1") as thief:
        for claimed in ("bed-2", "", "bed-1 "):
            with refused(secured, ErrorCode.IDENTITY_MISMATCH) as caught:
                thief.join(client_name=claimed)
            assert_discloses_nothing(caught.value, secured)
    assert secured.state.registry.by_name == {}
    lines = [vars(record) for record in caplog.records if "another's name" in record.getMessage()]
    assert [(line["certificate"], line["claimed"]) for line in lines] == [("bed-1", claimed) for claimed in ("bed-2", "", "bed-1 ")]


def test_a_stolen_session_is_worth_nothing(secured: RunningServer, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    with device(secured, authority, "bed-1") as owner, device(secured, authority, "bed-2") as thief:
        owner.join()
        thief.join()
        owner.await_assignment()
        for field in ("session", "run_id", "assignment"):
            setattr(thief, field, getattr(owner, field))
        before = len(secured.state.registry.live_records())
        for call in calls_of(thief):
            caplog.clear()
            with refused(secured, ErrorCode.IDENTITY_MISMATCH) as caught:
                call()
            assert_discloses_nothing(caught.value, secured, "bed-1")
            (line,) = [vars(record) for record in caplog.records if record.levelno == logging.WARNING]
            assert (line["certificate"], line["session_of"]) == ("bed-2", "bed-1")
        # The owner goes on as if nothing had happened.
        assert len(secured.state.registry.live_records()) == before
        for step in range(owner.assignment.plan.local_steps):
            owner.upload(step)
        owner.update()


def test_a_thief_does_not_keep_a_silent_device_alive(secured: RunningServer, authority: Authority) -> None:
    with device(secured, authority, "bed-1") as owner, device(secured, authority, "bed-2") as thief:
        owner.join()
        thief.join()
        stolen, own = owner.session, thief.session
        for _ in range(4):
            secured.advance(secured.config.rounds.liveness_seconds * 0.4)
            thief.session = own
            thief.ask()
            thief.session = stolen
            with refused(secured, ErrorCode.IDENTITY_MISMATCH):
                thief.ask()
        assert [record.name for record in secured.state.registry.live_records()] == ["bed-2"]


def test_a_visit_belongs_to_its_certificate_too(secured: RunningServer, authority: Authority) -> None:
    with device(secured, authority, "bed-1") as visitor, device(secured, authority, "bed-2") as thief:
        joined = visitor.join(only_checks=True)
        thief.session = visitor.session
        with refused(secured, ErrorCode.IDENTITY_MISMATCH):
            thief.blob(joined.programs[0].blob.sha256)
        assert visitor.blob(joined.programs[0].blob.sha256)


def test_a_device_that_lost_its_state_comes_back_by_its_certificate(secured: RunningServer, authority: Authority) -> None:
    with device(secured, authority, "bed-1") as wire:
        wire.join()
        old = wire.session
        wire.join(identity_key="n" * 32)
        assert wire.session != old and wire.ask()
        wire.session = old
        with refused(secured, ErrorCode.SESSION_UNKNOWN):
            wire.ask()


def test_revocation_takes_effect_on_the_next_message(
    secured: RunningServer, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with device(secured, authority, "bed-1") as wire, device(secured, authority, "bed-2") as other:
        wire.join()
        other.join()
        wire.await_assignment()
        header, *rest = wire.upload_parts(0)
        stream = OpenStream(wire).send(header)
        authority.revoke("bed-1")
        with pytest.raises(grpc.RpcError) as caught:
            stream.send(*rest).finish()
        assert metadata_of(caught.value)[ERROR_CODE_METADATA] == ErrorCode.CERTIFICATE_REVOKED.value
        assert secured.spooled_files == []
        for call in (wire.join, lambda: health_of(wire.channel), *calls_of(wire)):
            with refused(secured, ErrorCode.CERTIFICATE_REVOKED) as caught:
                call()
            assert "`heron certs issue`" in str(caught.value.details())
            assert_discloses_nothing(caught.value, secured, "bed-2")
        (line,) = [vars(record) for record in caplog.records if record.getMessage() == "refused a certificate"]
        assert (line["client"], line["code"]) == ("bed-1", "certificate_revoked") and int(line["serial"], 16)
        assert other.ask()
    # A new certificate for the same name is let in.
    with device(secured, authority, "bed-1") as again:
        assert again.join().run_id


def test_a_damaged_list_leaves_the_last_good_one(secured: RunningServer, authority: Authority) -> None:
    with device(secured, authority, "bed-1") as wire, device(secured, authority, "bed-2") as other:
        wire.join()
        other.join()
        authority.revoke("bed-1")
        with refused(secured, ErrorCode.CERTIFICATE_REVOKED):
            wire.ask()
        (authority.server_directory / "revoked.pem").write_text("nothing")
        with refused(secured, ErrorCode.CERTIFICATE_REVOKED):
            wire.ask()
        assert other.ask()


@pytest.mark.parametrize("name", ["revoked.pem", "server.pem", "server-key.pem", "ca.pem"])
def test_a_server_whose_directory_is_not_whole_does_not_start(serve: Serve, authority: Authority, name: str) -> None:
    (authority.server_directory / name).write_text("nothing")
    with pytest.raises(ConfigurationError) as caught:
        serve(tls_dir=authority.server_directory)
    assert str(authority.server_directory / name) in str(caught.value)
