"""What a certificate that came in a handshake says about its bearer; the handshake has verified it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from cryptography import x509

from heron_common.errors import ConfigurationError
from heron_common.ids import checked_client_name


@dataclass(frozen=True)
class PresentedCertificate:
    """Whose it is, empty if it names no device; its serial; its end in seconds since the epoch."""

    name: str
    serial: int
    not_after: float


@functools.lru_cache(maxsize=1024)
def read_presented(pem: bytes) -> PresentedCertificate:
    """Decode a certificate; every call brings one, so the last thousand are kept."""
    certificate = x509.load_pem_x509_certificate(pem)
    return PresentedCertificate(_name_of(certificate), certificate.serial_number, certificate.not_valid_after_utc.timestamp())


def _name_of(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
        return checked_client_name(names[0]) if len(names) == 1 else ""
    except (x509.ExtensionNotFound, ValueError, ConfigurationError):
        return ""
