"""Memory as the kernel counts it: what this process has, VmRSS now and VmHWM at its peak, and what it may have.

Never `ru_maxrss`: Linux folds the parent's high-water mark into it when a process starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class ResidentMemory(NamedTuple):
    """Bytes resident now and at the peak since the process started; zeros where the kernel does not tell."""

    resident_bytes: int
    peak_bytes: int
    anonymous_bytes: int = 0
    """Of the resident bytes those that are the process's own: no file holds them, so that no other machine needs fewer."""


def resident_memory(pid: int | str = "self") -> ResidentMemory:
    """Read the figures of a process from /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ResidentMemory(0, 0)
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return ResidentMemory(_kilobytes(fields.get("VmRSS")), _kilobytes(fields.get("VmHWM")), _kilobytes(fields.get("RssAnon")))


class AnonymousPeak:
    """The most of this process's own memory that was seen, pages of files apart: those depend on how much of a library a kernel maps."""

    def __init__(self, read: Callable[[], ResidentMemory] = resident_memory) -> None:
        self._read = read
        self._highest_bytes = read().peak_bytes
        self.peak_bytes = 0

    def note(self) -> None:
        """Look now; call where much is held, or just after.

        Where VmHWM rose since the last look, what was freed again counts too: the peak less the pages of files that are there now. Look before such
        pages are given back.
        """
        memory = self._read()
        own = memory.anonymous_bytes
        if memory.peak_bytes > self._highest_bytes:
            own += memory.peak_bytes - memory.resident_bytes
            self._highest_bytes = memory.peak_bytes
        self.peak_bytes = max(self.peak_bytes, own)


_UNLIMITED = 1 << 60
"""What control groups say instead of a limit is far beyond this; no machine has so much."""


def usable_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory that this process may use at most: the machine's, or less where a control group says so; 0 where nobody tells."""
    limits = (_machine_memory(proc), memory_limit(proc, groups) or 0)
    return min((limit for limit in limits if limit > 0), default=0)


def memory_limit(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes at which the kernel ends this process: systemd's MemoryMax, a container's limit; None without one."""
    return min((limit for limit in _group_limits(proc, groups) if 0 < limit < _UNLIMITED), default=None)


def available_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process could still take: what the kernel counts as available, less where a control group's limit is nearer."""
    limit, own = usable_memory(proc, groups), resident_memory().resident_bytes
    return min(_machine_memory(proc, "MemAvailable:"), max(0, limit - own))


def _machine_memory(proc: Path, field: str = "MemTotal:") -> int:
    try:
        text = (proc / "meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((_kilobytes(line.partition(":")[2]) for line in text.splitlines() if line.startswith(field)), 0)


def _group_limits(proc: Path, groups: Path) -> Iterator[int]:
    """Yield the limits of this process's control group and of those around it, of version 2 or 1; a container often sees its own as the root."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            yield _number_in(root / group / name)


def _number_in(path: Path) -> int:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def _kilobytes(value: str | None) -> int:
    return int(value.split()[0]) * 1024 if value else 0
