"""Certificates for tests: with another clock, from files that do not belong together, and channels that show what no honest client would."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

import grpc

from heron_common.files.tls_directory import CA_FILE, Credentials, TlsRole
from heron_common.protocol.grpc_options import channel_options
from heron_server.certificates.authority import Authority

DAY = 86400.0


def at(authority: Authority, seconds: float) -> Authority:
    """Return the same authority with a clock that stands `seconds` away from now."""
    return Authority(authority.directory, now=lambda: time.time() + seconds)


def issued(authority: Authority, name: str) -> Path:
    """Return the folder of a new device."""
    authority.issue(name)
    return authority.device_directory(name)


def mixed(target: Path, of: Path, **files: Path) -> Path:
    """Copy a folder and replace some of its files: `ca=PATH`, `device=PATH`, `device_key=PATH`."""
    shutil.copytree(of, target)
    for stem, path in files.items():
        shutil.copy(path, target / f"{stem.replace('_', '-')}.pem")
    return target


def unchecked(folder: Path, role: TlsRole = TlsRole.DEVICE, ca: Path | None = None) -> Credentials:
    """Return what a folder holds without a look at it, as a client that wants in by any means would."""
    return Credentials(
        directory=folder,
        role=role,
        names=(),
        not_after=math.inf,
        warnings=(),
        ca_pem=(ca or folder / CA_FILE).read_bytes(),
        certificate_pem=(folder / role.certificate_file).read_bytes(),
        key_pem=(folder / role.key_file).read_bytes(),
    )


def secure_channel(target: str, credentials: Credentials | None, ca_pem: bytes = b"") -> grpc.Channel:
    """Return a channel with these credentials, or one that trusts a CA and shows nothing."""
    shown = (ca_pem,) if credentials is None else (credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*shown), options=channel_options())
