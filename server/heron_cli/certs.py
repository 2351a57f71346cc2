"""`heron certs`: a private CA for mutual TLS: certificates for the server and its devices, and the list of those that were revoked."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heron_common.errors import ConfigurationError
from heron_common.exit_codes import ExitCode
from heron_common.files.tls_directory import REVOCATION_FILE, date_of
from heron_common.terminal.output import say
from heron_server.certificates.record import DEFAULT_DAYS, serial_text

if TYPE_CHECKING:
    from heron_server.certificates.authority import Authority


def add_parser(verbs: Any) -> None:
    """Declare the verb and what it does."""
    parser = verbs.add_parser("certs", help="make, hand out and revoke the certificates of mutual TLS")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    init = _action(actions, "init", run=run_init, explanation="make a private CA and the server's certificate")
    init.add_argument(
        "--host", nargs="+", required=True, metavar="NAME_OR_IP", help="what devices call the server; loopback is always added"
    )
    server = _action(actions, "server", run=run_server, explanation="give the server a new certificate: it expires, or has other hosts")
    server.add_argument("--host", nargs="+", default=[], metavar="NAME_OR_IP", help="what devices call the server (default: as before)")
    issue = _action(actions, "issue", run=run_issue, explanation="make the folder for a device: its key, and a certificate with its name")
    issue.add_argument("name", metavar="NAME", help="the device's name in every run")
    for made in (init, server, issue):
        made.add_argument(
            "--days", type=float, default=DEFAULT_DAYS, metavar="X", help=f"days until it expires (default: {DEFAULT_DAYS:g})"
        )
    revoke = _action(actions, "revoke", run=run_revoke, explanation="refuse every certificate of a device from now on")
    revoke.add_argument("name", metavar="NAME", help="the device's name")
    _action(actions, "list", run=run_list, explanation="show every certificate with its serial, expiry and state")


def _action(actions: Any, name: str, *, run: Any, explanation: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=explanation, description=explanation)
    parser.add_argument(
        "--dir", type=Path, default=Path("authority"), metavar="PATH", help="the authority's directory (default: authority)"
    )
    parser.set_defaults(run=run)
    return parser


def run_init(options: argparse.Namespace) -> int:
    """Make an authority. Raises as `Authority.create` does."""
    authority = _authority_type().create(options.dir, options.host, options.days)
    say(
        f"{options.dir} is a new authority. Its ca-key.pem makes certificates: keep it here, offline at best, and back it up.",
        f"Server:  heron-server --listen 0.0.0.0:50051 --tls-dir {authority.server_directory}",
        f"Device:  heron certs issue NAME --dir {options.dir}",
    )
    return ExitCode.OK


def run_server(options: argparse.Namespace) -> int:
    """Renew the server's certificate. Raises as `Authority.issue_server` does."""
    authority = _authority_type()(options.dir)
    issued = authority.issue_server(options.host, options.days)
    say(
        f"{authority.server_directory} has a new certificate for {', '.join(issued.hosts)}, valid until {date_of(issued.not_after)}.",
        "Copy the folder to the server if it is elsewhere, and restart heron-server (--resume).",
    )
    return ExitCode.OK


def run_issue(options: argparse.Namespace) -> int:
    """Make a device's folder. Raises as `Authority.issue` does."""
    authority = _authority_type()(options.dir)
    issued = authority.issue(options.name, options.days)
    folder = authority.device_directory(options.name)
    say(
        f"{folder} has the key and certificate of {issued.name}, valid until {date_of(issued.not_after)}.",
        "Move the folder to the device over a way that nobody reads; then: heron-client --server HOST:PORT --data SOURCE --tls-dir FOLDER",
    )
    now = time.time()
    if any(
        i.state(now) == "valid" for i in authority.record.certificates if i.name == issued.name and i.role is issued.role and i != issued
    ):
        say(f"An earlier certificate of {issued.name} is still good. If its key may be known: revoke {issued.name}, then issue again.")
    return ExitCode.OK


def run_revoke(options: argparse.Namespace) -> int:
    """Revoke a device. Raises as `Authority.revoke` does."""
    authority = _authority_type()(options.dir)
    revoked = authority.revoke(options.name)
    copy = authority.server_directory / REVOCATION_FILE
    say(
        f"{len(revoked)} certificate{'' if len(revoked) == 1 else 's'} of {options.name} revoked.",
        f"A server that runs with --tls-dir {authority.server_directory} refuses it from its next message on.",
        f"One that runs on a copy needs {copy}: copy it there, nothing has to be restarted.",
    )
    return ExitCode.OK


def run_list(options: argparse.Namespace) -> int:
    """Show what was issued. Raises as `Authority` does."""
    authority = _authority_type()(options.dir)
    now = time.time()
    rows = [("NAME", "FOR", "EXPIRES", "STATE", "SERIAL")]
    rows += [(c.name, c.role.value, date_of(c.not_after), c.state(now), serial_text(c.serial)) for c in authority.record.certificates]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    say(*("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows))
    return ExitCode.OK


def _authority_type() -> type[Authority]:
    # The other verbs do without the library, and so may an installation that needs no certificates.
    try:
        from heron_server.certificates.authority import Authority
    except ImportError as exc:
        raise ConfigurationError(f"heron certs needs the package `cryptography` ({exc}): pip install 'heron-sfl[server]'") from exc
    return Authority
