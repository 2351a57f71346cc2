"""Host and port as one word, with brackets around IPv6; which hosts are this machine."""

from __future__ import annotations

import socket


def join_host_port(host: str, port: int) -> str:
    """Return host:port as it is written in options and addresses: `127.0.0.1:50051`, `[::1]:50051`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(address: str) -> tuple[str, int]:
    """Return host, without brackets, and port of such a word."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host without brackets names this machine alone; names other than localhost are not looked up."""
    for family, loopback in ((socket.AF_INET, b"\x7f"), (socket.AF_INET6, bytes(15) + b"\x01")):
        try:
            if socket.inet_pton(family, host).startswith(loopback):
                return True
        except OSError:
            continue
    return host == "localhost"
