"""One process to a directory: created if need be, locked until closed or until the process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from heron_common.errors import InUseError, StorageError


class DirectoryLock:
    """Holds an advisory lock on a directory's `lock` file."""

    def __init__(self, path: Path, owner: str, remedy: str) -> None:
        """Create the directory and lock it.

        Args:
            path: the directory.
            owner: what kind of process uses it, for the sentence.
            remedy: what to do if it is taken, for the sentence.

        Raises:
            InUseError: another process holds it.
            StorageError: it cannot be written.

        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as exc:
            raise StorageError(f"cannot write the directory {path} ({exc.strerror or exc}): choose one that this user may write") from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(self._descriptor)
            self._descriptor = -1
            raise InUseError(f"another {owner} is using {path}: {remedy}") from exc

    def close(self) -> None:
        """Release the lock; safe to repeat."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
