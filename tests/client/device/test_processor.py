"""What a processor can do is asked of the kernel's start-up notes first, then of /proc/cpuinfo."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import pytest

from heron_client.device.processor import processor_features


def vector_of(folder: Path, *entries: tuple[int, int]) -> Path:
    path = folder / "auxv"
    path.write_bytes(b"".join(struct.pack("@NN", *entry) for entry in (*entries, (0, 0))))
    return path


def cpuinfo_of(folder: Path, line: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\n{line}\nprocessor\t: 1\n")
    return path


def test_an_emulated_processors_vector_wins_over_the_hosts_file(tmp_path: Path) -> None:
    host = cpuinfo_of(tmp_path, "flags\t\t: ssse3 sse4_1")
    # Six is the size of a page, which says nothing of features.
    vector = vector_of(tmp_path, (6, 4096), (16, 1 << 0 | 1 << 1 | 1 << 20), (26, 1 << 13))
    assert processor_features("aarch64", cpuinfo=host, vector=vector) == {"fp", "asimd", "asimddp", "i8mm"}
    assert processor_features("x86_64", cpuinfo=host, vector=vector) == {"ssse3", "sse4_1"}


@pytest.mark.parametrize("content", [b"", b"half a number", struct.pack("@NN", 6, 4096)])
def test_a_vector_that_does_not_tell_leaves_it_to_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "auxv").write_bytes(content)
    path = cpuinfo_of(tmp_path, "Features\t: fp asimd\nFeatures\t: fp asimd sve")
    assert processor_features("aarch64", cpuinfo=path, vector=tmp_path / "auxv") == {"fp", "asimd"}


def test_where_nobody_tells_nothing_is_known(tmp_path: Path) -> None:
    assert processor_features("aarch64", cpuinfo=tmp_path / "no", vector=tmp_path / "none") == frozenset()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="another architecture")
def test_this_machine_tells() -> None:
    assert processor_features()
