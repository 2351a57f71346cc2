"""The authority's directory: CA, what it issued, folders to hand out, the revocation list. One process at a time changes it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from heron_common.errors import ConfigurationError, StorageError
from heron_common.files.atomic import write_atomically
from heron_common.files.directory_lock import DirectoryLock
from heron_common.files.tls_directory import AUTHORITY_KEY_FILE, CA_FILE, REVOCATION_FILE, TlsRole
from heron_common.ids import checked_client_name
from heron_server.certificates.making import (
    AUTHORITY_YEARS,
    Issuer,
    certificate_to_pem,
    general_name,
    key_to_pem,
    make_authority,
    make_certificate,
    make_revocation_list,
    new_key,
)
from heron_server.certificates.record import DEFAULT_DAYS, AuthorityRecord, IssuedCertificate, read_record, write_record

RECORD_FILE = "issued.json"

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Always among a server's names: who holds its key may be called so on its own machine."""

Now = Callable[[], float]
"""Seconds since the epoch."""


class Authority:
    """A private CA in a directory; opened for one command."""

    def __init__(self, directory: Path, now: Now = time.time) -> None:
        """Open an authority that `create` made.

        Raises:
            ConfigurationError: there is none.
            StorageError: it is damaged.

        """
        self.directory = directory
        self._now = now
        if not (directory / AUTHORITY_KEY_FILE).exists():
            raise ConfigurationError(
                f"{directory} holds no authority: make one with `heron certs init --dir {directory}`, or give another --dir"
            )
        self._issuer = _read_issuer(directory)

    @classmethod
    def create(cls, directory: Path, hosts: Sequence[str], days: float = DEFAULT_DAYS, now: Now = time.time) -> Authority:
        """Make a CA, an empty revocation list and the server's certificate.

        Raises:
            ConfigurationError: there is one already, or a host cannot be one.
            StorageError: the disk refuses.

        """
        names = _server_names(hosts)
        _check_days(days)
        with _writing(directory), _locked(directory):
            if (directory / AUTHORITY_KEY_FILE).exists():
                raise ConfigurationError(
                    f"{directory} holds an authority already, and its devices would not know another: renew the server's certificate with "
                    f"`heron certs server --dir {directory}`, or give another --dir"
                )
            _make_private(directory)
            issuer = make_authority(_utc(now()))
            write_record(directory / RECORD_FILE, AuthorityRecord())
            write_atomically(directory / CA_FILE, certificate_to_pem(issuer.certificate))
            # Last: a directory is an authority once it has its key.
            write_atomically(directory / AUTHORITY_KEY_FILE, key_to_pem(issuer.key), mode=0o600)
        authority = cls(directory, now)
        authority._issue_server(names, days)
        return authority

    @property
    def server_directory(self) -> Path:
        """The server's `--tls-dir`."""
        return self.directory / "server"

    def device_directory(self, name: str) -> Path:
        """Return a device's `--tls-dir`, to be copied to it."""
        return self.directory / "devices" / name

    @property
    def record(self) -> AuthorityRecord:
        """What was issued and revoked."""
        return read_record(self.directory / RECORD_FILE)

    def issue(self, name: str, days: float = DEFAULT_DAYS) -> IssuedCertificate:
        """Write a device's folder: a new key and a certificate with its name. Earlier certificates of that name stay as they are.

        Raises:
            ConfigurationError: the name cannot be a client's.
            StorageError: the disk refuses.

        """
        return self._issue(TlsRole.DEVICE, checked_client_name(name), hosts=(), days=days, folder=self.device_directory(name))

    def issue_server(self, hosts: Sequence[str], days: float = DEFAULT_DAYS) -> IssuedCertificate:
        """Write the server's folder anew; without `hosts` for those of its last certificate. Raises as `issue` does."""
        earlier = self.record.of(TlsRole.SERVER)
        return self._issue_server(_server_names(hosts) if hosts or not earlier else earlier[-1].hosts, days)

    def revoke(self, name: str) -> tuple[IssuedCertificate, ...]:
        """Put every certificate of a device on the list, in this directory and in the server's folder, and return them.

        Raises:
            ConfigurationError: nothing was ever issued to that name.
            StorageError: the disk refuses.

        """
        with _writing(self.directory), _locked(self.directory):
            record = self.record
            if not record.of(TlsRole.DEVICE, name):
                known = ", ".join(sorted({issued.name for issued in record.of(TlsRole.DEVICE)})) or "none yet"
                raise ConfigurationError(f"no certificate was issued to {name!r}: devices are {known}")
            record = record.with_revoked(name, self._now())
            self._write_list(record)
            return record.of(TlsRole.DEVICE, name)

    def _issue_server(self, hosts: Sequence[str], days: float) -> IssuedCertificate:
        issued = self._issue(TlsRole.SERVER, hosts[0], hosts=hosts, days=days, folder=self.server_directory)
        with _writing(self.directory), _locked(self.directory):
            self._write_list(self.record)
        return issued

    def _issue(self, role: TlsRole, name: str, *, hosts: Sequence[str], days: float, folder: Path) -> IssuedCertificate:
        _check_days(days)
        key, now = new_key(), self._now()
        certificate = make_certificate(self._issuer, role, key=key.public_key(), name=name, hosts=hosts, now=_utc(now), days=days)
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        issued = IssuedCertificate(name, role, serial=certificate.serial_number, not_before=begin, not_after=end, hosts=tuple(hosts))
        with _writing(self.directory), _locked(self.directory):
            # The record first: what may have left this machine can be revoked.
            write_record(self.directory / RECORD_FILE, self.record.with_issued(issued))
            _make_private(folder)
            write_atomically(folder / CA_FILE, certificate_to_pem(self._issuer.certificate))
            write_atomically(folder / role.key_file, key_to_pem(key), mode=0o600)
            write_atomically(folder / role.certificate_file, certificate_to_pem(certificate))
        return issued

    def _write_list(self, record: AuthorityRecord) -> None:
        record = AuthorityRecord(record.certificates, record.lists_made + 1)
        write_record(self.directory / RECORD_FILE, record)
        revoked = [(issued.serial, issued.revoked_at) for issued in record.certificates if issued.revoked_at]
        data = make_revocation_list(self._issuer, record.lists_made, revoked=revoked, now=_utc(self._now()))
        for folder in (self.directory, self.server_directory):
            write_atomically(folder / REVOCATION_FILE, data)


def _read_issuer(directory: Path) -> Issuer:
    try:
        certificate = x509.load_pem_x509_certificate((directory / CA_FILE).read_bytes())
        key = load_pem_private_key((directory / AUTHORITY_KEY_FILE).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as exc:
        raise StorageError(f"the authority in {directory} cannot be read ({exc}): restore it from a backup") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise StorageError(f"{directory / AUTHORITY_KEY_FILE} is not the key of {directory / CA_FILE}: restore both from a backup")
    return Issuer(certificate, key)


def _server_names(hosts: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys((*(host.strip("[]") for host in hosts), *LOOPBACK_HOSTS)))
    for host in names:
        try:
            if not host or set(host) & set("/: \t") - (set(":") if host.count(":") > 1 else set()):
                raise ValueError("no port, path or space")
            general_name(host)
        except ValueError as exc:
            raise ConfigurationError(f"--host is a name or an IP address that devices reach the server at, not {host!r} ({exc})") from exc
    return names


def _check_days(days: float) -> None:
    if not 0 < days <= 365.25 * AUTHORITY_YEARS:
        raise ConfigurationError(
            f"a certificate is valid for more than 0 days and no longer than its authority, not {days:g}: choose other --days"
        )


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = DirectoryLock(directory, "heron certs", "try again when it has ended")
    try:
        yield
    finally:
        lock.close()


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StorageError(f"cannot write {directory} ({exc.strerror or exc}): free some space or choose another --dir") from exc


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
