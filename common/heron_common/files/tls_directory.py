"""A `--tls-dir`: certificate, key and CA of one side, proved to belong together by the standard library alone, with a sentence where they do not.

OpenSSL checks them in a handshake that the certificate's owner has with itself in memory, so that what is wrong shows before anything is sent.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from heron_common.errors import ClockError, ConfigurationError

CA_FILE = "ca.pem"
AUTHORITY_KEY_FILE = "ca-key.pem"
REVOCATION_FILE = "revoked.pem"

EXPIRY_WARNING_SECONDS = 30 * 86400
"""A month: time enough to visit a device."""

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: dates are compared here, where the sentence can name them."""

_NOT_FROM_THIS_CA = {2, 7, 18, 19, 20, 21}
_UNSUITABLE_PURPOSE = 26

_ROUNDS = 10
"""A handshake takes two or three turns of each side; more means that it does not end."""


class TlsRole(StrEnum):
    """Whose directory it is; names its files."""

    DEVICE = "device"
    SERVER = "server"

    @property
    def certificate_file(self) -> str:
        """The certificate's name in the directory."""
        return f"{self.value}.pem"

    @property
    def key_file(self) -> str:
        """The private key's name in the directory."""
        return f"{self.value}-key.pem"


_ORIGIN = {
    TlsRole.DEVICE: "copy the folder that `heron certs issue NAME` wrote",
    TlsRole.SERVER: "give the folder `server` that `heron certs init` wrote",
}
_RENEWAL = {TlsRole.DEVICE: "`heron certs issue NAME`", TlsRole.SERVER: "`heron certs server`"}


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A certificate, its key and its CA, which belong together and are valid now.

    Attributes:
        names: the DNS names of the certificate: a device's is its client name.
        not_after: seconds since the epoch.
        warnings: sentences that do not stand in the way.

    """

    directory: Path
    role: TlsRole
    names: tuple[str, ...]
    not_after: float
    warnings: tuple[str, ...]
    ca_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)


def read_credentials(directory: Path, role: TlsRole, now: float) -> Credentials:
    """Read and prove a directory at `now`, in seconds since the epoch.

    Raises:
        ConfigurationError: a file is missing, key or CA do not match, or the certificate is not valid now.
        ClockError: it is not valid yet.

    """
    if (directory / AUTHORITY_KEY_FILE).exists():
        proper = directory / ("server" if role is TlsRole.SERVER else "devices/NAME")
        raise ConfigurationError(
            f"{directory} holds the authority's private key, which has no business where data are processed: give --tls-dir {proper}, or a copy of it"
        )
    ca_pem, certificate_pem, key_pem = (_read(directory / name, role) for name in (CA_FILE, role.certificate_file, role.key_file))
    certificate, authorities = _present_to_itself(directory, role)
    for what, found, renewal in (
        (role.certificate_file, certificate, f"ask for a new one: {_RENEWAL[role]}"),
        *((CA_FILE, authority, "make a new authority: `heron certs init`") for authority in authorities),
    ):
        _check_dates(directory / what, found, renewal=renewal, role=role, now=now)
    not_after = ssl.cert_time_to_seconds(certificate["notAfter"])
    names = tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS")
    warnings = _warnings(directory, role, not_after=not_after, now=now)
    return Credentials(
        directory=directory,
        role=role,
        names=names,
        not_after=not_after,
        warnings=warnings,
        ca_pem=ca_pem,
        certificate_pem=certificate_pem,
        key_pem=key_pem,
    )


def date_of(seconds: float) -> str:
    """Return a day in UTC as it is written in sentences: 2026-01-31."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _read(path: Path, role: TlsRole) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise ConfigurationError(f"{path} is missing: {_ORIGIN[role]}") from exc
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path} ({exc.strerror or exc}): {_ORIGIN[role]}, readable for this user") from exc


def _present_to_itself(directory: Path, role: TlsRole) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the certificate and the CA's as OpenSSL decodes them, once it has verified key, chain and purpose."""
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    verifier = server if role is TlsRole.DEVICE else client
    try:
        verifier.load_verify_locations(directory / CA_FILE)
    except ssl.SSLError as exc:
        raise ConfigurationError(f"{directory / CA_FILE} is not a certificate in PEM ({exc.reason}): {_ORIGIN[role]} again") from exc
    verifier.verify_mode = ssl.CERT_REQUIRED
    verifier.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    for context in (client, server):
        _load_chain(context, directory, role)
    try:
        certificate = _shake_hands(client, server, verifier)
    except ssl.SSLCertVerificationError as exc:
        raise ConfigurationError(_verification_sentence(exc, directory, role)) from exc
    except ssl.SSLError as exc:
        raise ConfigurationError(f"the certificate in {directory} cannot be used for TLS ({exc.reason}): {_ORIGIN[role]} again") from exc
    return certificate, list(verifier.get_ca_certs())


def _load_chain(context: ssl.SSLContext, directory: Path, role: TlsRole) -> None:
    certificate, key = directory / role.certificate_file, directory / role.key_file
    try:
        # Without a password of our own OpenSSL would ask for one on the terminal, where no service has anybody to answer.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(f"{key} is not the key of {certificate}: {_ORIGIN[role]} again, whole") from exc
        raise ConfigurationError(
            f"{certificate} and {key} are not a certificate and a key without a password in PEM ({exc.reason}): {_ORIGIN[role]} again"
        ) from exc


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, verifier: ssl.SSLContext) -> dict[str, Any]:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(_ROUNDS):
        waiting = False
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting = True
        if not waiting:
            break
    else:
        raise ssl.SSLError("the handshake does not end")
    return dict(sides[0 if verifier is client else 1].getpeercert() or {})


def _verification_sentence(error: ssl.SSLCertVerificationError, directory: Path, role: TlsRole) -> str:
    certificate, ca = directory / role.certificate_file, directory / CA_FILE
    if error.verify_code in _NOT_FROM_THIS_CA:
        return f"{certificate} was not issued by the CA in {ca}: use the files of one authority, {_ORIGIN[role]}"
    if error.verify_code == _UNSUITABLE_PURPOSE:
        return f"{certificate} is not the certificate of a {role.value}: {_ORIGIN[role]}"
    return f"{certificate} cannot be verified ({error.verify_message}): {_ORIGIN[role]} again"


def _check_dates(path: Path, certificate: dict[str, Any], *, renewal: str, role: TlsRole, now: float) -> None:
    not_before, not_after = (ssl.cert_time_to_seconds(certificate[key]) for key in ("notBefore", "notAfter"))
    if now > not_after:
        raise ConfigurationError(f"{path} expired on {date_of(not_after)}: {renewal}")
    if now < not_before:
        raise ClockError(
            f"{path} is not valid before {date_of(not_before)}, but this {role.value}'s clock says {date_of(now)}: set the clock"
        )


def _warnings(directory: Path, role: TlsRole, *, not_after: float, now: float) -> tuple[str, ...]:
    key, found = directory / role.key_file, []
    if not_after - now < EXPIRY_WARNING_SECONDS:
        days = int((not_after - now) / 86400)
        found.append(f"{directory / role.certificate_file} expires on {date_of(not_after)}, in {days} days: renew it with {_RENEWAL[role]}")
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        found.append(f"{key} can be read by others (mode {mode:04o}): chmod 600 {key}")
    return tuple(found)
