"""Who speaks in a call: the certificate that its connection was opened with, or the address that it comes from where there is no TLS."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

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


def address_of(context: Any) -> str:
    """Return the address of a call's client, of IPv6 the network, for a device has as many addresses there as it likes."""
    peer = unquote(context.peer())
    host = peer.partition(":")[2].rpartition(":")[0].strip("[]")
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return peer.partition(":")[0]
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))
