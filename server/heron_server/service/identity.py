"""Who speaks in a call: the certificate that its connection was opened with, nobody in particular where there is no TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heron_server.certificates.presented import PresentedCertificate

_CERTIFICATE_KEY = "x509_pem_cert"


def certificate_of(context: Any) -> PresentedCertificate | None:
    """Return the verified certificate of a call's client, if it has one."""
    found = context.auth_context().get(_CERTIFICATE_KEY)
    if not found:
        return None
    # Only servers with --tls-dir load the library.
    from heron_server.certificates.presented import read_presented

    return read_presented(bytes(found[0]))


def certified_name(context: Any) -> str:
    """Return the name that a call's client proved, or nothing without TLS."""
    presented = certificate_of(context)
    return presented.name if presented is not None else ""
