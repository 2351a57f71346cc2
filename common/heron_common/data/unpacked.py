"""Files that cannot be read row by row, unpacked once into the user's cache directory and read from there ever after."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from heron_common.errors import DataError
from heron_common.files.atomic import replace_atomically
from heron_common.files.user_directories import cache_home

PACKING_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError)
"""What damaged .gz and .tar.gz files raise; other OSErrors are about the disk, not about the content."""


def cache_directory() -> Path:
    """Return where unpacked data lies: the desktop convention's cache, which may be deleted at any time. Raises ConfigurationError where there is none."""
    return cache_home("") / "heron" / "data"


def unpacked_once(sources: Sequence[Path], label: str, write: Callable[[BinaryIO], object]) -> Path:
    """Return the file that `write` made of the sources, now or earlier; sources that changed since are unpacked anew.

    Raises:
        DataError: a source cannot be read or there is no room; `write` raises it for damaged content, and nothing is kept then.

    """
    directory = cache_directory()
    try:
        target = directory / f"{label}-{_fingerprint(sources)}"
        if target.is_file():
            return target
        directory.mkdir(parents=True, exist_ok=True)
        # Clients that start together on one host: the first unpacks, the others wait for its file.
        with _locked(directory / ".lock"):
            if not target.is_file():
                replace_atomically(target, write)
    except OSError as exc:
        raise DataError(
            f"cannot unpack {sources[0]} into {directory} ({exc}): make room there or set XDG_CACHE_HOME to another directory"
        ) from exc
    return target


def _fingerprint(sources: Sequence[Path]) -> str:
    # Size and time instead of the content: reading 170 MB at every start would take longer than the start itself.
    states = [(str(path.resolve()), path.stat()) for path in sources]
    text = "\n".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
