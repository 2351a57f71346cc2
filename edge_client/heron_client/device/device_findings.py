"""What `--self-check` finds on the device itself and on the way to the server: one sentence each, and whether it stands in the way."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from heron_client.config import ClientConfig
from heron_client.device.device_check import FAST_FEATURES
from heron_client.device.processor import processor_features
from heron_common.process.process_memory import available_memory, usable_memory
from heron_common.terminal.figures import human_bytes

LEAST_FREE_DISK_BYTES = 64 << 20
"""Programs take megabytes and are kept from run to run; a disk with less than this fills up at the next log."""

NOTEWORTHY_SKEW_SECONDS = 60.0
"""Below this no certificate's date is ever in question."""


@dataclass(frozen=True)
class Finding:
    """One line of the page."""

    topic: str
    sentence: str
    go: bool = True


def processor_finding() -> Finding:
    """Say what computes here; the libraries are loaded by now, so that they run."""
    machine, found = platform.machine(), processor_features()
    fast = [name for name in FAST_FEATURES.get(machine, ()) if name in found]
    quick = f"with {', '.join(fast)}" if fast else "without any instruction that makes int8 or float32 faster"
    libc = " ".join(platform.libc_ver()) or "an unknown C library"
    return Finding("processor", f"{machine}, {os.cpu_count() or 1} cores, {quick}; {libc}; numpy and ONNX Runtime load and share buffers.")


def memory_finding(limit_bytes: int | None) -> Finding:
    """Say how much memory there is; whether the run fits comes when its programs have run."""
    whole, free = usable_memory(), available_memory()
    limit = f"; --memory-limit {human_bytes(limit_bytes)} is what counts" if limit_bytes else ""
    return Finding("memory", f"{human_bytes(free)} free of {human_bytes(whole)} that this process may use{limit}.")


def disk_finding(directory: Path, least_bytes: int = LEAST_FREE_DISK_BYTES) -> Finding:
    """Say how much room the state directory has; it has been written to by now."""
    free = shutil.disk_usage(directory).free
    if free < least_bytes:
        return Finding(
            "disk", f"only {human_bytes(free)} free at {directory}, at least {human_bytes(least_bytes)} are wanted: free some.", go=False
        )
    return Finding("disk", f"{human_bytes(free)} free at {directory}, which can be written.")


def transport_finding(config: ClientConfig) -> Finding:
    """Say whose certificates are in use; the handshake has succeeded by now."""
    if config.credentials is None:
        return Finding("certificate", "none: everything travels in clear, which is for loopback and networks of your own.")
    # Only clients with TLS pay for its modules.
    from heron_common.files.tls_directory import date_of

    own = f"this device is {config.name!r} until {date_of(config.credentials.not_after)}, and the server's certificate is from the same authority"
    return Finding("certificate", "; ".join([own, *config.credentials.warnings]) + ".")


def clock_finding(server_seconds: float, answer_seconds: float, *, tls: bool, now: float | None = None) -> Finding:
    """Compare the clocks, to within the time that the answer took; rounds are timed by a monotonic clock, so that only dates of certificates are at stake."""
    here = time.time() if now is None else now
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(here))
    if not server_seconds:
        return Finding("clock", f"{written} UTC; this server does not tell its own time.")
    skew = here - server_seconds
    if abs(skew) <= max(NOTEWORTHY_SKEW_SECONDS, answer_seconds):
        return Finding("clock", f"{written} UTC, as on the server to within {max(abs(skew), answer_seconds):.1f} s.")
    way = "ahead of" if skew > 0 else "behind"
    at_stake = (
        "certificates are judged by it: set it before one seems expired or not valid yet"
        if tls
        else "nothing here depends on it without TLS"
    )
    return Finding("clock", f"{written} UTC, {abs(skew):.0f} s {way} the server's; {at_stake}.")
