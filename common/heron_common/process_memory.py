"""Memory of this process as the kernel counts it: VmRSS now, VmHWM at its peak, and the limit of its control group.

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


def memory_limit(control_groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the bytes at which the kernel ends this process (systemd's MemoryMax, a container's limit); None without one, or without cgroup v2."""
    try:
        own = next(line[3:] for line in membership.read_text(encoding="ascii").splitlines() if line.startswith("0::"))
    except (OSError, ValueError, StopIteration):
        return None
    group = control_groups / own.strip("/")
    limits = []
    # A limit further up counts for everything below it.
    for directory in (group, *group.parents):
        try:
            text = (directory / "memory.max").read_text(encoding="ascii").strip()
        except OSError:
            text = "max"
        if text.isdigit():
            limits.append(int(text))
        if directory == control_groups:
            break
    return min(limits, default=None)


def _kilobytes(value: str | None) -> int:
    return int(value.split()[0]) * 1024 if value else 0
