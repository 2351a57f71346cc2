"""When gRPC only says "unavailable": one connection of the client's own finds out what is wrong with TLS, and says it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import grpc
import pytest

from heron_client.network.handshake import diagnose
from heron_client.network.retry_policy import DIAGNOSE_AFTER_FAILURES, RetryPolicy
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError, TransportError
from heron_common.files.tls_directory import TlsRole, date_of
from heron_common.process.clock import ManualClock
from heron_common.process.retry import BackoffPolicy
from heron_server.certificates.authority import Authority
from heron_server.service.tls import open_tls
from tests.harness.certificates import DAY, at, issued, unchecked
from tests.harness.cluster import free_port

pytestmark = pytest.mark.process


@contextlib.contextmanager
def grpc_server(credentials: grpc.ServerCredentials | None, host: str = "127.0.0.1") -> Iterator[str]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        port = server.add_secure_port(f"{host}:0", credentials) if credentials else server.add_insecure_port(f"{host}:0")
        server.start()
        yield f"{host}:{port}"
        server.stop(0).wait()


@pytest.fixture
def secured(authority: Authority) -> Iterator[str]:
    with grpc_server(open_tls(authority.server_directory).credentials) as address:
        yield address


def test_nothing_is_found_where_tls_works_or_nobody_listens(authority: Authority, secured: str) -> None:
    device = unchecked(issued(authority, "bed-1"))
    assert diagnose(secured, device) is None
    nobody = f"127.0.0.1:{free_port()}"
    assert diagnose(nobody, device) is None and diagnose(nobody, None) is None
    for address in ("no-such-host.invalid:1", f"{'x' * 70}.invalid:1"):
        assert diagnose(address, device) is None
    with grpc_server(None) as plain:
        assert diagnose(plain, None) is None


def test_one_side_alone_has_tls(authority: Authority, secured: str) -> None:
    assert f"{secured} expects TLS" in str(diagnose(secured, None)) and "--tls-dir" in str(diagnose(secured, None))
    with grpc_server(None) as plain:
        message = str(diagnose(plain, unchecked(issued(authority, "bed-1"))))
        assert f"{plain} speaks no TLS" in message and "start heron-server with --tls-dir" in message


def test_the_server_refuses_this_device(authority: Authority, secured: str, tmp_path: Path) -> None:
    at(authority, -400 * DAY).issue("expired")
    other = issued(Authority.create(tmp_path / "other", []), "bed-1")
    for device in (
        unchecked(authority.device_directory("expired")),
        unchecked(other, ca=authority.directory / "ca.pem"),
        unchecked(authority.server_directory, TlsRole.SERVER),
    ):
        message = str(diagnose(secured, device))
        assert "this device's certificate may be refused" in message and "`heron certs issue`" in message


def test_a_certificate_that_expired_while_this_client_ran_is_told_without_asking(authority: Authority, secured: str) -> None:
    device = dataclasses.replace(unchecked(issued(authority, "bed-1")), not_after=time.time() - DAY)
    assert f"this device's certificate expired on {date_of(device.not_after)}: ask for a new one" in str(diagnose(secured, device))


def test_the_server_is_not_the_one_that_was_meant(authority: Authority, secured: str, tmp_path: Path) -> None:
    stranger = unchecked(issued(Authority.create(tmp_path / "other", []), "bed-1"))
    message = str(diagnose(secured, stranger))
    assert f"the certificate of {secured} is not from the CA in {stranger.directory / 'ca.pem'}" in message
    device = unchecked(issued(authority, "bed-1"))
    with grpc_server(open_tls(authority.server_directory).credentials, "127.0.0.2") as elsewhere:
        message = str(diagnose(elsewhere, device))
        assert "is not for '127.0.0.2'" in message and "heron certs server --host 127.0.0.2" in message
    # Another device with a certificate of the same CA, which listens where the server should.
    with grpc_server(grpc.ssl_server_credentials([(device.key_pem, device.certificate_pem)])) as posing:
        assert "shows a certificate that is not a server's" in str(diagnose(posing, device))
    at(authority, -400 * DAY).issue_server([])
    server = unchecked(authority.server_directory, TlsRole.SERVER)
    with grpc_server(grpc.ssl_server_credentials([(server.key_pem, server.certificate_pem)])) as late:
        assert f"the certificate of {late} has expired: renew it with `heron certs server`" in str(diagnose(late, device))
    at(authority, 10 * DAY).issue_server([])
    server = unchecked(authority.server_directory, TlsRole.SERVER)
    with grpc_server(grpc.ssl_server_credentials([(server.key_pem, server.certificate_pem)])) as early:
        assert "is not valid yet: this device's clock may be wrong" in str(diagnose(early, device))


@contextlib.contextmanager
def openssl_server(authority: Authority) -> Iterator[str]:
    """A server that says why it refuses, as proxies with OpenSSL do; gRPC's own only closes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_directory / "server.pem", authority.server_directory / "server-key.pem")
    context.load_verify_locations(authority.directory / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_reason_that_the_server_gives_is_passed_on(authority: Authority, tmp_path: Path) -> None:
    at(authority, -400 * DAY).issue("expired")
    other = issued(Authority.create(tmp_path / "other", []), "bed-1")
    with openssl_server(authority) as address:
        message = str(diagnose(address, unchecked(authority.device_directory("expired"))))
        assert "it takes the certificate for expired: compare the clocks" in message
        assert "it trusts another CA" in str(diagnose(address, unchecked(other, ca=authority.directory / "ca.pem")))


# ---- when it is asked ---------------------------------------------------------------------------------------------------------------------


class Doctor:
    def __init__(self, finding: str | None) -> None:
        self.finding = finding
        self.asked = 0

    def __call__(self) -> str | None:
        self.asked += 1
        return self.finding


def retry_policy(doctor: Doctor, clock: ManualClock, give_up_after_seconds: float = 0.0) -> RetryPolicy:
    backoff = BackoffPolicy(initial_seconds=0.0, factor=1.0, cap_seconds=0.0, floor_seconds=0.0)
    return RetryPolicy(threading.Event(), clock, Random(0), give_up_after_seconds=give_up_after_seconds, backoff=backoff, diagnose=doctor)


def test_it_is_asked_after_repeated_failures_and_then_ever_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    doctor = Doctor("it speaks no TLS")
    attempts = retry_policy(doctor, ManualClock()).begin("join")
    asked = []
    for _ in range(DIAGNOSE_AFTER_FAILURES * 16):
        attempts.wait(TransportError("unavailable"))
        asked.append(doctor.asked)
    assert asked.index(1) == DIAGNOSE_AFTER_FAILURES - 1 and doctor.asked == 3
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["it speaks no TLS"] * 3


def test_a_server_that_answers_is_not_looked_into() -> None:
    doctor = Doctor("never asked")
    attempts = retry_policy(doctor, ManualClock()).begin("join")
    for _ in range(20):
        attempts.wait(RefusedError(ErrorCode.TOO_MANY_CLIENTS, "later", 0.001))
    assert doctor.asked == 0


def test_giving_up_says_what_was_found() -> None:
    clock = ManualClock()
    for finding, sentence in (("it speaks no TLS", "unavailable; it speaks no TLS"), (None, "unavailable")):
        attempts = retry_policy(Doctor(finding), clock, give_up_after_seconds=5.0).begin("join")
        clock.advance(6.0)
        with pytest.raises(TransportError) as caught:
            attempts.wait(TransportError("unavailable"))
        assert str(caught.value) == sentence
