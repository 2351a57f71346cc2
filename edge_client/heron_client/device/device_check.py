"""Can this processor and C library run the libraries underneath? Asked before the first of them is loaded, for some of them would only crash."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from heron_client.device.memory import import_sparingly
from heron_common.errors import UnsupportedError

NEEDED_FEATURES = {
    "x86_64": ("ssse3", "sse4_1", "sse4_2", "popcnt", "cx16"),
    "aarch64": ("asimd", "fp"),
}
"""What the wheels of numpy and ONNX Runtime are compiled for at least (x86-64-v2, ARMv8), by the names in /proc/cpuinfo."""

FAST_FEATURES = {
    "x86_64": ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni"),
    "aarch64": ("asimddp", "asimdhp", "i8mm", "sve", "bf16"),
}
"""What makes them faster where it is there."""


def check_device(machine: str = platform.machine(), cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Refuse a processor that lacks what the libraries were compiled for; one that does not tell is tried.

    Raises:
        UnsupportedError: it lacks something.

    """
    found = processor_features(cpuinfo)
    missing = [name for name in NEEDED_FEATURES.get(machine, ()) if name not in found] if found else []
    if missing:
        raise UnsupportedError(
            f"this {machine} processor lacks {', '.join(missing)}, which numpy and ONNX Runtime are compiled for: use a device with a newer processor"
        )


def processor_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return what the first processor can do, as the kernel names it; empty where the kernel does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    return frozenset(named.partition(":")[2].split())


def load_libraries(modules: Sequence[str]) -> None:
    """Import the large libraries one by one, see `import_sparingly`.

    Raises:
        UnsupportedError: one cannot be loaded: not installed, or made for another C library or processor.

    """
    try:
        import_sparingly(modules)
    except (ImportError, OSError, RuntimeError) as exc:
        reason = " ".join(str(root_cause(exc)).split())[:300]
        raise UnsupportedError(
            f"a library of heron-client cannot be loaded on this machine ({reason}): it needs glibc 2.28 or newer and what "
            "`pip install heron-sfl` installs, see docs/edge-binary.md"
        ) from exc


def root_cause(error: BaseException) -> BaseException:
    """Return what an error came from: libraries wrap what the loader says in pages of advice."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
