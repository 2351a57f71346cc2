"""What this processor can do, as the kernel tells a program that it starts, or as /proc/cpuinfo names it."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

_AUXILIARY_VECTOR = Path("/proc/self/auxv")
_CPUINFO = Path("/proc/cpuinfo")

_HARDWARE_CAPABILITIES = 16
_MORE_HARDWARE_CAPABILITIES = 26
"""AT_HWCAP and AT_HWCAP2 of <elf.h>."""

_BITS = {
    _HARDWARE_CAPABILITIES: {"fp": 0, "asimd": 1, "asimdhp": 10, "asimddp": 20, "sve": 22},
    _MORE_HARDWARE_CAPABILITIES: {"i8mm": 13, "bf16": 14},
}
"""Of <asm/hwcap.h> on aarch64. On x86_64 the vector holds only what every such processor has."""


def processor_features(machine: str = platform.machine(), *, cpuinfo: Path = _CPUINFO, vector: Path = _AUXILIARY_VECTOR) -> frozenset[str]:
    """Return what the processor can do, by the kernel's names; empty where nobody tells.

    The auxiliary vector comes first where it tells: an emulator fills it in for the processor that it plays, while /proc/cpuinfo is often the host's.
    """
    return (_of_vector(vector) if machine == "aarch64" else frozenset()) or _of_cpuinfo(cpuinfo)


def _of_vector(vector: Path) -> frozenset[str]:
    try:
        entries = dict(struct.iter_unpack("@NN", vector.read_bytes()))
    except (OSError, struct.error):
        return frozenset()
    return frozenset(name for kind, bits in _BITS.items() for name, bit in bits.items() if entries.get(kind, 0) >> bit & 1)


def _of_cpuinfo(cpuinfo: Path) -> frozenset[str]:
    """Read the first processor's line."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    return frozenset(named.partition(":")[2].split())
