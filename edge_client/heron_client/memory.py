"""Keep the C allocator from hoarding: few arenas, large blocks back to the kernel at once, a trim after each round."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_THRESHOLD_BYTES = 128 * 1024


def tame_allocator() -> bool:
    """Set glibc's limits for this process, before any thread starts; return whether there was a glibc to set them in."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _THRESHOLD_BYTES)
    except (OSError, AttributeError):
        return False
    return True


def return_freed_memory() -> None:
    """Give freed heap pages back to the kernel where the C library can."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
