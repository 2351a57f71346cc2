"""The way to the server, secured or not: whose certificate it is, what is worth a warning, why it fails. Modules for TLS are loaded where there is some."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from heron_common.errors import ConfigurationError
from heron_common.ids import checked_client_name
from heron_common.process.addresses import is_loopback, split_host_port

if TYPE_CHECKING:
    from heron_common.files.tls_directory import Credentials

log = logging.getLogger(__name__)


def read_device(directory: Path, now: float | None = None) -> tuple[str, Credentials]:
    """Return the name on a device's certificate, and the proved contents of its directory.

    Raises:
        ConfigurationError: see `read_credentials`; or the certificate names no client.

    """
    from heron_common.files.tls_directory import TlsRole, read_credentials

    credentials = read_credentials(directory, TlsRole.DEVICE, time.time() if now is None else now)
    if len(credentials.names) != 1:
        raise ConfigurationError(
            f"{directory / TlsRole.DEVICE.certificate_file} names no device: ask for one from `heron certs issue NAME`"
        )
    return checked_client_name(credentials.names[0]), credentials


def warn_of_transport(server: str, credentials: Credentials | None) -> None:
    """Say that the way to the server is in clear, or that the certificate will not last."""
    if credentials is None and not is_loopback(split_host_port(server)[0]):
        log.warning("connecting beyond loopback without TLS (--insecure): activations and labels travel in clear")
    for warning in credentials.warnings if credentials is not None else ():
        log.warning(warning)


def diagnose_tls(server: str, credentials: Credentials | None) -> str | None:
    """Ask the server once why TLS with it fails, or whether it expects TLS; None if it cannot tell."""
    from heron_client.network.handshake import diagnose

    return diagnose(server, credentials)
