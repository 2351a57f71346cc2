"""Resident memory of this process as the kernel counts it: VmRSS now and VmHWM at its peak.

Never `ru_maxrss`: Linux folds the parent's high-water mark into it when a process starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class ResidentMemory(NamedTuple):
    """Bytes resident now and at the peak since the process started; zeros where the kernel does not tell."""

    resident_bytes: int
    peak_bytes: int


def resident_memory(pid: int | str = "self") -> ResidentMemory:
    """Read the two figures of a process from /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ResidentMemory(0, 0)
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return ResidentMemory(_kilobytes(fields.get("VmRSS")), _kilobytes(fields.get("VmHWM")))


def _kilobytes(value: str | None) -> int:
    return int(value.split()[0]) * 1024 if value else 0
