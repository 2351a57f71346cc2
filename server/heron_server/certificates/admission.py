"""Whether the bearer of a certificate may speak now. Knows no gRPC; says in the log who was refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.files.tls_directory import date_of
from heron_server.certificates.presented import PresentedCertificate
from heron_server.certificates.record import serial_text

log = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 60.0
"""One line a minute for each refused certificate: a device that keeps knocking must not fill the disk."""


class Admission:
    """Checks a verified certificate on every call and message; thread-safe."""

    def __init__(self, is_revoked: Callable[[int], bool], now: Callable[[], float]) -> None:
        """`is_revoked` is asked about a serial every time; `now` is in seconds since the epoch."""
        self._is_revoked = is_revoked
        self._now = now
        self._lock = threading.Lock()
        self._logged: dict[int, float] = {}

    def check(self, presented: PresentedCertificate | None, call: str) -> None:
        """Return if its bearer may speak.

        Raises:
            RefusedError: CERTIFICATE_REVOKED, CERTIFICATE_EXPIRED, or IDENTITY_MISMATCH if it names no device.

        """
        if presented is None or not presented.name:
            self._refuse(
                presented,
                call,
                code=ErrorCode.IDENTITY_MISMATCH,
                sentence="this certificate names no device: get one from `heron certs issue NAME`",
            )
        elif self._is_revoked(presented.serial):
            sentence = "this device's certificate was revoked: if that was a mistake, ask for a new one (`heron certs issue`)"
            self._refuse(presented, call, code=ErrorCode.CERTIFICATE_REVOKED, sentence=sentence)
        elif self._now() > presented.not_after:
            # The handshake refuses it too, but a connection may be older than that.
            sentence = f"this device's certificate expired on {date_of(presented.not_after)}: ask for a new one (`heron certs issue`)"
            self._refuse(presented, call, code=ErrorCode.CERTIFICATE_EXPIRED, sentence=sentence)

    def _refuse(self, presented: PresentedCertificate | None, call: str, *, code: ErrorCode, sentence: str) -> None:
        name, serial = (presented.name, presented.serial) if presented is not None else ("", 0)
        if self._is_news(serial):
            log.warning("refused a certificate", extra={"client": name, "serial": serial_text(serial), "code": code.value, "call": call})
        raise RefusedError(code, sentence)

    def _is_news(self, serial: int) -> bool:
        now = self._now()
        with self._lock:
            last = self._logged.get(serial)
            if last is not None and 0 <= now - last < LOG_INTERVAL_SECONDS:
                return False
            self._logged[serial] = now
            return True
