"""One process to a directory: created if need be, locked until closed or until the process dies; gone again if nothing was put into it."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
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
        self._path = path
        self._is_new = not path.exists()
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
        """Release the lock, and take away a directory that was made for it and has nothing else in it; safe to repeat."""
        if self._descriptor >= 0:
            self._remove_if_unused()
            os.close(self._descriptor)
            self._descriptor = -1

    def _remove_if_unused(self) -> None:
        # A start that was refused leaves no directory behind for its owner to wonder about.
        with suppress(OSError):
            if self._is_new and [entry.name for entry in self._path.iterdir()] == ["lock"]:
                (self._path / "lock").unlink()
                self._path.rmdir()
