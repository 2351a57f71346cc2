"""A directory of what was computed at an earlier start, by the digest of all that it depends on; what is not whole is not there."""

from __future__ import annotations

import functools
import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

from heron_common.files.atomic import write_atomically

log = logging.getLogger(__name__)

_DIGEST_BYTES = 32


@functools.cache
def library_version(name: str) -> str:
    """Return a library's version, which stands in the keys of what it made; read once, for that takes milliseconds."""
    return version(name)


class CacheDirectory:
    """Files that each begin with the digest of the rest. One that cannot be read or written costs time, never a run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._told = False

    def read(self, name: str) -> bytes | None:
        """Return what was kept under a name, or None: it is not there, or not whole."""
        try:
            content = (self._directory / name).read_bytes()
        except OSError:
            return None
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return data if hashlib.sha256(data).digest() == digest else None

    def keep(self, name: str, data: bytes) -> None:
        """Keep data under a name; where that cannot be, say so once."""
        try:
            write_atomically(self._directory / name, hashlib.sha256(data).digest() + data)
        except OSError as exc:
            if not self._told:
                log.warning("the program cache cannot be written, programs are compiled at every start", extra={"reason": str(exc)})
            self._told = True
