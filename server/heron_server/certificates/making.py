"""Keys, certificates and revocation lists as values: X.509 by the `cryptography` library, nothing read or written here."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from heron_common.files.tls_directory import TlsRole

AUTHORITY_YEARS = 10

TOLERATED_CLOCK_LAG = datetime.timedelta(hours=1)
"""A certificate is valid from an hour ago, for devices whose clock lags."""

_PURPOSE = {TlsRole.DEVICE: ExtendedKeyUsageOID.CLIENT_AUTH, TlsRole.SERVER: ExtendedKeyUsageOID.SERVER_AUTH}
"""One purpose each, so that a device cannot pass for the server."""

_COMMON_NAME_LIMIT = 64


@dataclass(frozen=True)
class Issuer:
    """A CA's certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh private key on P-256: small, fast, and known to every TLS library."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Encode a private key without a password: what a service starts with alone is protected by its file's mode."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def certificate_to_pem(certificate: x509.Certificate) -> bytes:
    """Encode a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_authority(now: datetime.datetime) -> Issuer:
    """Return a new CA, valid for ten years; it signs certificates and revocation lists and no other CA."""
    key = new_key()
    serial = x509.random_serial_number()
    # The serial in the name tells two authorities apart where only names are shown.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"HERON authority {serial:040x}"[:28])])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(
        name, name, key=key.public_key(), serial=serial, now=now, not_after=now + datetime.timedelta(days=365.25 * AUTHORITY_YEARS)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(usage, critical=True)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    return Issuer(builder.sign(key, hashes.SHA256()), key)


def make_certificate(
    issuer: Issuer, role: TlsRole, *, key: ec.EllipticCurvePublicKey, name: str, hosts: Sequence[str], now: datetime.datetime, days: float
) -> x509.Certificate:
    """Return a certificate for a device called `name`, or for a server that is reached at `hosts`; it does not outlive its CA."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_COMMON_NAME_LIMIT])])
    not_after = min(now + datetime.timedelta(days=days), issuer.certificate.not_valid_after_utc)
    builder = _builder(subject, issuer.certificate.subject, key=key, serial=x509.random_serial_number(), now=now, not_after=not_after)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([_PURPOSE[role]]), critical=False)
    names = [general_name(host) for host in hosts] if role is TlsRole.SERVER else [x509.DNSName(name)]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def make_revocation_list(issuer: Issuer, number: int, *, revoked: Iterable[tuple[int, float]], now: datetime.datetime) -> bytes:
    """Return the signed list of revoked (serial, seconds since the epoch) in PEM; a later list has a larger number."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject).last_update(now)
    # It holds until the next one comes, however long that takes: a server must not stop because nobody was revoked.
    builder = builder.next_update(max(issuer.certificate.not_valid_after_utc, now + datetime.timedelta(days=1)))
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    for serial, at in revoked:
        when = datetime.datetime.fromtimestamp(at, datetime.UTC)
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def general_name(host: str) -> x509.GeneralName:
    """Return a host as certificates write it: an IP address as one, anything else as a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    *,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key).serial_number(serial)
    builder = builder.not_valid_before(now - TOLERATED_CLOCK_LAG).not_valid_after(not_after)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
