"""What an authority issued and revoked, as one JSON file: nothing that is not in it was ever signed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from heron_common.errors import StorageError
from heron_common.files.atomic import write_json_atomically
from heron_common.files.tls_directory import TlsRole

DEFAULT_DAYS = 365.0
"""A year: a device that nobody visits for longer is better forgotten."""


@dataclass(frozen=True)
class IssuedCertificate:
    """One certificate. Times are seconds since the epoch; `revoked_at` is 0 while it is good."""

    name: str
    role: TlsRole
    _: KW_ONLY
    serial: int
    not_before: float
    not_after: float
    hosts: tuple[str, ...] = ()
    revoked_at: float = 0.0

    def state(self, now: float) -> str:
        """Return valid, revoked or expired."""
        if self.revoked_at:
            return "revoked"
        return "expired" if now > self.not_after else "valid"


@dataclass(frozen=True)
class AuthorityRecord:
    """Every certificate in the order of issue, and how many revocation lists there were."""

    certificates: tuple[IssuedCertificate, ...] = ()
    lists_made: int = 0

    def of(self, role: TlsRole, name: str | None = None) -> tuple[IssuedCertificate, ...]:
        """Return the certificates of a role, or of one name in it."""
        return tuple(issued for issued in self.certificates if issued.role is role and name in (None, issued.name))

    def with_issued(self, issued: IssuedCertificate) -> AuthorityRecord:
        """Return a record with one certificate more."""
        return dataclasses.replace(self, certificates=(*self.certificates, issued))

    def with_revoked(self, name: str, now: float) -> AuthorityRecord:
        """Return a record in which every certificate of a device is revoked."""
        certificates = tuple(
            dataclasses.replace(issued, revoked_at=issued.revoked_at or now) if issued in self.of(TlsRole.DEVICE, name) else issued
            for issued in self.certificates
        )
        return dataclasses.replace(self, certificates=certificates)


def read_record(path: Path) -> AuthorityRecord:
    """Read the file.

    Raises:
        StorageError: it is missing or damaged.

    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        certificates = tuple(
            IssuedCertificate(**{**row, "role": TlsRole(row["role"]), "serial": int(row["serial"], 16), "hosts": tuple(row["hosts"])})
            for row in found["certificates"]
        )
        return AuthorityRecord(certificates, int(found["lists_made"]))
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise StorageError(f"{path} cannot be read ({exc}): restore it from a backup, without it nothing can be revoked") from exc


def write_record(path: Path, record: AuthorityRecord) -> None:
    """Write the file; raises OSError, the old one then stands."""
    rows = [{**dataclasses.asdict(issued), "serial": serial_text(issued.serial)} for issued in record.certificates]
    write_json_atomically(path, {"certificates": rows, "lists_made": record.lists_made})


def serial_text(serial: int) -> str:
    """Return a serial number as it is written and shown everywhere: lower-case hexadecimal."""
    return f"{serial:x}"
