"""Why a server cannot be reached, where the reason is TLS: gRPC only says "unavailable", so one connection of our own asks."""

from __future__ import annotations

import socket
import ssl
import time

from heron_common.files.tls_directory import CA_FILE, Credentials, date_of
from heron_common.process.addresses import split_host_port

TIMEOUT_SECONDS = 5.0
"""Of every step of the probe; what answers later than this has another problem than TLS."""

_EXPIRED, _NOT_YET_VALID, _UNSUITABLE_PURPOSE = 10, 9, 26
_OTHER_NAME = {62, 64}

_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
"""What OpenSSL makes of an answer that is no TLS record."""

_ALERTS = {
    "CERTIFICATE_EXPIRED": "it takes the certificate for expired: compare the clocks of both machines",
    "UNKNOWN_CA": "it trusts another CA: use certificates of one authority on both sides",
}


def diagnose(server: str, credentials: Credentials | None) -> str | None:
    """Return one sentence on what is wrong with TLS between this client and host:port, or None if it is not TLS."""
    if credentials is not None and time.time() > credentials.not_after:
        return f"this device's certificate expired on {date_of(credentials.not_after)}: ask for a new one (`heron certs issue`) and start again"
    host, port = split_host_port(server)
    try:
        with socket.create_connection((host, port), TIMEOUT_SECONDS) as connection:
            if credentials is None:
                return _without_certificate(connection, server)
            return _with_certificate(connection, server=server, host=host, credentials=credentials)
    except (OSError, ValueError):
        # No such host, nobody answers, or the connection broke: gRPC's own words say so.
        return None


def _without_certificate(connection: socket.socket, server: str) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection):
            pass
    except ssl.SSLError as exc:
        if "ALERT" not in (exc.reason or ""):
            return None
    return f"{server} expects TLS and this client has no certificate: give --tls-dir, the folder that `heron certs issue NAME` wrote"


def _with_certificate(connection: socket.socket, *, server: str, host: str, credentials: Credentials) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=credentials.ca_pem.decode())
    context.load_cert_chain(credentials.directory / credentials.role.certificate_file, credentials.directory / credentials.role.key_file)
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=host) as stream:
            # In TLS 1.3 the server judges a client's certificate after the client's part of the handshake is over; one that is content sends its settings.
            if stream.recv(1):
                return None
    except ssl.SSLCertVerificationError as exc:
        return _about_the_server(exc, server=server, host=host, credentials=credentials)
    except (ssl.SSLEOFError, ConnectionResetError):
        pass
    except ssl.SSLError as exc:
        reason = exc.reason or ""
        if reason in _NO_TLS:
            return f"{server} speaks no TLS, so nothing is sent to it: start heron-server with --tls-dir, or check --server"
        if "ALERT" in reason:
            return _about_this_device(reason, server, credentials)
        return f"no TLS with {server} ({reason or exc}): check --server and the server's log"
    return f"{server} closed the connection in the handshake: this device's certificate may be refused, ask for a new one (`heron certs issue`)"


def _about_the_server(error: ssl.SSLCertVerificationError, *, server: str, host: str, credentials: Credentials) -> str:
    if error.verify_code in _OTHER_NAME:
        return f"the certificate of {server} is not for {host!r}: connect to a name that it has, or make one with `heron certs server --host {host}`"
    if error.verify_code == _EXPIRED:
        return f"the certificate of {server} has expired: renew it with `heron certs server`; or this device's clock is wrong"
    if error.verify_code == _NOT_YET_VALID:
        return f"the certificate of {server} is not valid yet: this device's clock may be wrong"
    if error.verify_code == _UNSUITABLE_PURPOSE:
        return f"{server} shows a certificate that is not a server's, so nothing is sent to it: a device may pass itself off as the server"
    ca = credentials.directory / CA_FILE
    return (
        f"the certificate of {server} is not from the CA in {ca}, so nothing is sent to it: check --server, or use files of its authority"
    )


def _about_this_device(reason: str, server: str, credentials: Credentials) -> str:
    why = next((text for alert, text in _ALERTS.items() if alert in reason), f"{reason.lower()}: ask for a new one (`heron certs issue`)")
    certificate = credentials.directory / credentials.role.certificate_file
    return f"{server} refuses the certificate {certificate} in the handshake; {why}"
