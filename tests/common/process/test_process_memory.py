"""A process's own memory apart from pages of files: what was freed again counts, what was mapped from a file does not."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from heron_common.process.process_memory import AnonymousPeak, ResidentMemory, resident_memory

MEBIBYTE = 1 << 20


def peak_of(*seen: tuple[int, int, int]) -> int:
    """Return the peak after looks that saw (resident, highest, anonymous), the first when it began."""
    reads: Iterator[ResidentMemory] = iter([ResidentMemory(*one) for one in seen])
    peak = AnonymousPeak(lambda: next(reads))
    for _ in seen[1:]:
        peak.note()
    return peak.peak_bytes


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([(50, 80, 20), (60, 80, 25)], 25),
        ([(50, 80, 20), (60, 80, 25), (55, 80, 21)], 25),
        # 30 that are gone again set the highest mark, with the 35 of files that are there now.
        ([(50, 80, 20), (60, 90, 25)], 55),
        # The mark of start-up, before the first look, says nothing of files that were given back since.
        ([(50, 200, 20), (60, 200, 25)], 25),
        ([(50, 80, 20), (60, 90, 25), (60, 90, 25)], 55),
    ],
)
def test_the_peak_follows_from_what_was_seen(seen: list[tuple[int, int, int]], expected: int) -> None:
    assert peak_of(*seen) == expected


def test_own_pages_count_and_pages_of_a_file_do_not(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(b"x" * (32 * MEBIBYTE))
    before = resident_memory()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        total = int(np.frombuffer(mapped, np.uint8)[::4096].sum())
        with_file = resident_memory()
    own = mmap.mmap(-1, 32 * MEBIBYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(own, np.uint8)[:] = 1
    with_own = resident_memory()
    assert total > 0 and with_file.resident_bytes - before.resident_bytes > 28 * MEBIBYTE
    assert with_file.anonymous_bytes - before.anonymous_bytes < 4 * MEBIBYTE
    assert with_own.anonymous_bytes - with_file.anonymous_bytes > 28 * MEBIBYTE
