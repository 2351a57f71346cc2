"""Can this processor and C library run the libraries underneath? Asked before the first of them is loaded, for some of them would only crash."""

from __future__ import annotations

from collections.abc import Sequence

from heron_client.device.memory import import_sparingly
from heron_common.errors import UnsupportedError

NEEDED_FEATURES = {
    "x86_64": ("ssse3", "sse4_1", "sse4_2", "popcnt", "cx16"),
    "aarch64": ("asimd", "fp"),
}
"""What the wheels of numpy and ONNX Runtime are compiled for at least (x86-64-v2, ARMv8), by the kernel's names."""

FAST_FEATURES = {
    "x86_64": ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni"),
    "aarch64": ("asimddp", "asimdhp", "i8mm", "sve", "bf16"),
}
"""What makes them faster where it is there."""


def check_device(machine: str, features: frozenset[str]) -> None:
    """Refuse a processor that lacks what the libraries were compiled for; one that does not tell its features is tried.

    Raises:
        UnsupportedError: it lacks something.

    """
    missing = [name for name in NEEDED_FEATURES.get(machine, ()) if name not in features] if features else []
    if missing:
        raise UnsupportedError(
            f"this {machine} processor lacks {', '.join(missing)}, which numpy and ONNX Runtime are compiled for: use a device with a newer processor"
        )


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
