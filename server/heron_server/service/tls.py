"""The server's side of mutual TLS: what `--tls-dir` holds, as gRPC's credentials and a guard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from heron_common.files.tls_directory import REVOCATION_FILE, TlsRole, date_of, read_credentials
from heron_server.certificates.admission import Admission
from heron_server.certificates.revocation import RevocationList
from heron_server.service.guard import CertificateGuard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerTls:
    """What a port needs to let in devices with a certificate, and nobody else."""

    credentials: grpc.ServerCredentials
    guard: CertificateGuard


def open_tls(directory: Path, now: Callable[[], float] = time.time) -> ServerTls:
    """Read and prove a server's directory.

    Raises:
        ConfigurationError: a file is missing or does not fit, or the certificate is not valid now.

    """
    own = read_credentials(directory, TlsRole.SERVER, now())
    revoked = RevocationList(directory / REVOCATION_FILE, own.ca_pem)
    for warning in own.warnings:
        log.warning(warning)
    log.info("mutual TLS", extra={"tls_dir": str(directory), "names": ",".join(own.names), "expires": date_of(own.not_after)})
    credentials = grpc.ssl_server_credentials([(own.key_pem, own.certificate_pem)], root_certificates=own.ca_pem, require_client_auth=True)
    return ServerTls(credentials, CertificateGuard(Admission(revoked.is_revoked, now)))
