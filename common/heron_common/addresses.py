"""Host and port as one word, with brackets around IPv6."""

from __future__ import annotations


def join_host_port(host: str, port: int) -> str:
    """Return host:port as it is written in options and addresses: `127.0.0.1:50051`, `[::1]:50051`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
