"""Proxies that the environment names: none for this machine itself, and a refusal says which variable was obeyed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from heron_common.process.addresses import is_loopback

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
"""What gRPC reads, in its order; the first that is set counts."""

_EVERY_INTERFACE = ("0.0.0.0", "::")
"""Addresses that a server listens on, and that reach this machine."""


def proxy_options(target: str) -> list[tuple[str, int]]:
    """Return the channel options for host:port: whatever the environment says, this machine is not asked by way of another."""
    return [("grpc.enable_http_proxy", 0)] if _is_here(target) else []


def obeyed_variable(target: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the name of the variable by which gRPC asks host:port through a proxy; None if it goes there directly."""
    if _is_here(target):
        return None
    host = _host(target)
    exceptions = next((environment[name] for name in _EXCEPTIONS if environment.get(name)), "")
    if any(host.endswith(entry.strip().lstrip("*")) for entry in exceptions.split(",") if entry.strip()):
        return None
    return next((name for name in _VARIABLES if environment.get(name)), None)


def proxy_hint(target: str) -> str:
    """Return what to add to a sentence about host:port that did not answer."""
    variable = obeyed_variable(target)
    return (
        f"; it was asked through the proxy that the variable {variable} names: unset it, or name the host in no_proxy" if variable else ""
    )


def _is_here(target: str) -> bool:
    host = _host(target)
    return is_loopback(host) or host in _EVERY_INTERFACE


def _host(target: str) -> str:
    return target.rpartition(":")[0].strip("[]")
