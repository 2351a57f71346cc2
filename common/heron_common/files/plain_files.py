"""Files of a directory that may come from a stranger: plain ones by plain names, read up to a size; what is ill-formed in them becomes a sentence."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heron_common.errors import StorageError

MOST_DOCUMENT_BYTES = 4 << 20
"""Of a small JSON document; a run's identity and manifests have some kilobytes."""

MOST_SUMMARY_BYTES = 256 << 20
"""Of a run's summary; a round has less than a kilobyte."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")

_PIECE_BYTES = 16 << 20


class NotPlainError(OSError):
    """A link, pipe, device, folder or file too large stands where a plain file was expected."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EINVAL, sentence)


def plain_name(name: str) -> str:
    """Return the name of a file beside the document that names it, so that no document names a file elsewhere.

    Raises:
        ValueError: it has another form.

    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"the name of a file beside it was expected, not {name[:80]!r}")
    return name


def read_plain(path: Path, most_bytes: int) -> bytes:
    """Return what a regular file holds; folders on the way may be links, see `plain_folder`.

    Raises:
        FileNotFoundError: there is none.
        NotPlainError: it is no regular file, or has more bytes than expected.
        OSError: it cannot be read.

    """
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would be waited for, here and for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise NotPlainError("a plain file was expected, not a link") from exc
        raise
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise NotPlainError("a plain file was expected, not a folder, pipe or device")
        if state.st_size > most_bytes:
            raise NotPlainError(f"a file of at most {most_bytes} bytes was expected, not of {state.st_size}")
        # One byte more than there should be shows a file that grows meanwhile.
        data = bytearray()
        while piece := file.read(min(_PIECE_BYTES, most_bytes + 1 - len(data))):
            data += piece
            if len(data) > most_bytes:
                raise NotPlainError(f"a file of at most {most_bytes} bytes was expected, but this one grows")
    return bytes(data)


def plain_folder(path: Path) -> Path:
    """Return a folder of a run directory, whose own name may be a link but nothing in it.

    Raises:
        NotPlainError: it is a link.

    """
    if path.is_symlink():
        raise NotPlainError(f"a folder was expected at {path}, not a link to one")
    return path


def is_plain(path: Path) -> bool:
    """Whether a regular file is there, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


@contextmanager
def reading(what: object, error: type[StorageError] = StorageError) -> Iterator[None]:
    """Turn what ill-formed content makes of the code that works with it into one sentence.

    Raises:
        StorageError: or the kind that is given.

    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as exc:
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
        raise error(f"{what} does not hold what was expected ({reason}): restore it from a backup") from exc
