"""What the client gives back to the kernel, and that nothing is lost by it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heron_client.device.memory import clean_file_mappings

pytestmark = pytest.mark.process

_SMAPS = """\
5000-7000 r-xp 00000000 08:01 1234 /lib/clean.so
Size:                  8 kB
Anonymous:             0 kB
Swap:                  0 kB
7000-8000 r--p 00002000 08:01 1234 /lib/relocated.so
Anonymous:             4 kB
Swap:                  0 kB
8000-9000 r--p 00002000 08:01 1234 /lib/swapped.so
Anonymous:             0 kB
Swap:                  4 kB
9000-a000 rw-p 00002000 08:01 1234 /lib/writable.so
Anonymous:             0 kB
Swap:                  0 kB
a000-b000 r--p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  0 kB
b000-c000 r--s 00000000 08:01 1234 /data/shared.bin
Anonymous:             0 kB
Swap:                  0 kB
c000-d000 r--p 00000000 08:01 99 /path with spaces/clean.so
Anonymous:             0 kB
Swap:                  0 kB
"""

_SCRIPT = """
from heron_client.device.memory import import_sparingly, tame_allocator
from heron_common.process.process_memory import resident_memory
import sys
tame_allocator()
names = ("numpy", "onnxruntime", "grpc", "prometheus_client")
if sys.argv[1] == "sparingly":
    import_sparingly(names)
else:
    for name in names:
        __import__(name)
import numpy as np
assert np.linalg.norm(np.arange(5.0)) ** 2 == 30.0
print(resident_memory().peak_bytes)
"""


def _peak(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_only_read_only_private_file_mappings_without_pages_of_their_own_are_dropped() -> None:
    assert clean_file_mappings(_SMAPS) == [(0x5000, 0x7000), (0xC000, 0xD000)]


def test_a_kernel_that_does_not_say_what_is_anonymous_loses_nothing() -> None:
    assert clean_file_mappings("5000-7000 r-xp 00000000 08:01 1234 /lib/clean.so\nSize: 8 kB\n") == []


def test_libraries_imported_sparingly_work_and_peak_lower() -> None:
    assert _peak("sparingly") < _peak("at once") - 10_000_000
