"""The list of revoked certificates as a server holds it: read again whenever its file changes, and never given up for a worse one."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from heron_common.errors import ConfigurationError

log = logging.getLogger(__name__)

_Signature = tuple[int, int, int] | None
"""Time of change, size and inode of the file; None where there is none."""


@dataclass(frozen=True)
class _List:
    number: int
    serials: frozenset[int]


class RevocationList:
    """Thread-safe. A list that is missing, damaged, forged or older than the one at hand is reported once and not taken."""

    def __init__(self, path: Path, ca_pem: bytes) -> None:
        """Read it for the first time.

        Raises:
            ConfigurationError: it cannot be read: nobody is let in without one.

        """
        self._path = path
        self._ca = x509.load_pem_x509_certificate(ca_pem)
        self._lock = threading.Lock()
        self._signature = _signature(path)
        try:
            self._list = self._read()
        except (OSError, ValueError) as exc:
            raise ConfigurationError(
                f"{path} cannot be read ({exc}), and without a list of revoked certificates nobody is let in: copy revoked.pem from the authority's directory"
            ) from exc

    def is_revoked(self, serial: int) -> bool:
        """Whether a serial is revoked, by the file as it is now."""
        signature = _signature(self._path)
        if signature != self._signature:
            with self._lock:
                self._refresh(signature)
        return serial in self._list.serials

    def _refresh(self, signature: _Signature) -> None:
        if signature == self._signature:
            return
        try:
            found = self._read()
            if found.number < self._list.number:
                raise ValueError(f"it is list {found.number}, older than list {self._list.number}")
        except (OSError, ValueError) as exc:
            log.error("the new revocation list is not taken, the last good one stands", extra={"path": str(self._path), "reason": str(exc)})
        else:
            log.info("revocation list read again", extra={"number": found.number, "revoked": len(found.serials)})
            self._list = found
        self._signature = signature

    def _read(self) -> _List:
        found = x509.load_pem_x509_crl(self._path.read_bytes())
        key = self._ca.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not found.is_signature_valid(key):
            raise ValueError("it was not signed by this CA")
        try:
            number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        except x509.ExtensionNotFound as exc:
            raise ValueError("it has no number") from exc
        return _List(number, frozenset(entry.serial_number for entry in found))


def _signature(path: Path) -> _Signature:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
