"""Payloads on disk until a checkpoint holds what came of them: one file each, a byte budget over all, references in memory."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import TracebackType

from heron_common.errors import SpoolFullError, StorageError
from heron_common.files.plain_files import is_plain
from heron_common.process.crash_points import CrashPoint, crash_point
from heron_server.storage.recorded import StoredFile


@dataclass(frozen=True)
class SpoolEntry:
    """One payload on disk."""

    path: Path
    size_bytes: int
    _: KW_ONLY
    owner: str = ""
    """The client whose upload it is; empty for what the server itself wants."""
    sha256: str = ""
    """Of the payload, where the ledger cannot know it from what a client sent."""

    def to_stored(self) -> StoredFile:
        """Return how the ledger names it."""
        return StoredFile(self.path.name, self.size_bytes, self.sha256)

    def read(self) -> bytearray:
        """Return the payload.

        Raises:
            StorageError: it is gone or shorter than it was.

        """
        data = bytearray(self.size_bytes)
        try:
            with self.path.open("rb", buffering=0) as file:
                got = file.readinto(data)
        except OSError as exc:
            raise StorageError(f"cannot read the spooled upload {self.path} ({exc.strerror or exc})") from exc
        if got != self.size_bytes:
            raise StorageError(f"the spooled upload {self.path} has {got} bytes instead of {self.size_bytes}")
        return data

    def pieces(self, size_bytes: int) -> Iterator[bytes]:
        """Yield the payload in pieces of at most `size_bytes`.

        Raises:
            StorageError: it is gone.

        """
        try:
            with self.path.open("rb") as file:
                while piece := file.read(size_bytes):
                    yield piece
        except OSError as exc:
            raise StorageError(f"cannot read the spooled gradients {self.path} ({exc.strerror or exc})") from exc


class Spool:
    """A directory with a byte budget; thread-safe."""

    def __init__(
        self,
        directory: Path,
        budget_bytes: int,
        *,
        needed: Collection[str] = (),
        durable: bool = True,
        owner_bytes: int | None = None,
        inbox_bytes: int | None = None,
    ) -> None:
        """Create the directory and remove what an earlier process left but the files `needed` by the ledger.

        Args:
            directory: where payloads are.
            budget_bytes: of all payloads together.
            needed: names of files to keep.
            durable: a payload is on disk when it is committed; without, a crash of the process loses nothing, a power cut may.
            owner_bytes: of one owner's payloads, once the spool is half full: until then nobody takes anybody's room.
            inbox_bytes: of payloads that are still arriving.

        Raises:
            StorageError: the disk refuses.

        """
        self._owner_budget = owner_bytes if owner_bytes is not None else budget_bytes
        self._inbox_budget = inbox_bytes if inbox_bytes is not None else budget_bytes
        self._by_owner: Counter[str] = Counter()
        self._arriving = 0
        self._directory = directory
        self.budget_bytes = budget_bytes
        self._durable = durable
        self._used = 0
        self._lock = threading.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Also of files that are gone: a name in the ledger never comes to mean another payload.
            numbers = [int(Path(_checked(name)).stem) for name in needed]
            for left in directory.glob("*.upload"):
                if left.name not in needed:
                    left.unlink()
        except (OSError, ValueError) as exc:
            raise StorageError(f"cannot prepare the spool {directory} ({exc}): choose another --run-dir") from exc
        self._numbers = itertools.count(max(numbers, default=-1) + 1)

    @property
    def used_bytes(self) -> int:
        """Bytes reserved now."""
        return self._used

    @property
    def is_half_full(self) -> bool:
        """Whether more than half of the budget is used."""
        return 2 * self._used > self.budget_bytes

    @property
    def arriving_bytes(self) -> int:
        """Bytes reserved for payloads that have not come whole yet."""
        return self._arriving

    def recover(self, name: str, size_bytes: int, *, owner: str = "", sha256: str = "") -> SpoolEntry:
        """Take up a payload that an earlier process committed; read once, a piece at a time, where its digest is known.

        Raises:
            StorageError: it is gone, has another size or other bytes.

        """
        path = self._directory / _checked(name)
        if not is_plain(path):
            raise StorageError(f"the spooled upload {path} is gone, or no plain file any more")
        try:
            size = path.stat().st_size
            found = _digest(path) if sha256 and size == size_bytes else sha256
        except OSError as exc:
            raise StorageError(f"the spooled upload {path} is gone ({exc.strerror or exc})") from exc
        if size != size_bytes:
            raise StorageError(f"the spooled upload {path} has {size} bytes instead of {size_bytes}")
        if found != sha256:
            raise StorageError(
                f"the spooled upload {path} is not what was acknowledged: its digest is {found[:12]} instead of {sha256[:12]}"
            )
        with self._lock:
            self._used += size_bytes
            self._by_owner[owner] += size_bytes
        return SpoolEntry(path, size_bytes, owner=owner, sha256=sha256)

    def make_durable(self, descriptor: int) -> None:
        """Return when a file and its name are on disk, if that was asked for; raises OSError."""
        if not self._durable:
            return
        os.fsync(descriptor)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def open(self, size_bytes: int, always: bool = False, owner: str = "") -> SpoolWriter:
        """Reserve room and open a writer.

        Args:
            size_bytes: what will be written, exactly.
            always: admit it over budget: the upload that training waits for, and updates, of which there is one a client and round.
            owner: the client whose upload it is.

        Raises:
            SpoolFullError: a budget is used up now.
            StorageError: the file cannot be created.

        """
        with self._lock:
            if not always:
                self._refuse_over_budget(size_bytes, owner)
            self._used += size_bytes
            self._by_owner[owner] += size_bytes
            self._arriving += size_bytes
            entry = SpoolEntry(self._directory / f"{next(self._numbers):09d}.upload", size_bytes, owner=owner)
        try:
            return SpoolWriter(self, entry)
        except OSError as exc:
            self.arrived(entry)
            self._free(entry)
            raise StorageError(f"cannot write to the spool {self._directory} ({exc.strerror or exc})") from exc

    def _refuse_over_budget(self, size_bytes: int, owner: str) -> None:
        # What is larger than a whole budget is admitted alone: refused for ever, it would keep its round from ending.
        if self._used and self._used + size_bytes > self.budget_bytes:
            raise SpoolFullError(f"the spool holds {self._used} of {self.budget_bytes} bytes, so an upload of {size_bytes} has to wait")
        if self._arriving and self._arriving + size_bytes > self._inbox_budget:
            raise SpoolFullError(f"{self._arriving} of {self._inbox_budget} bytes are arriving, so an upload of {size_bytes} has to wait")
        waits, share = self._by_owner[owner], self._owner_budget
        if self.is_half_full and owner and waits and waits + size_bytes > share:
            raise SpoolFullError(
                f"{waits} bytes of this client wait, of {share} in a spool that is half full: an upload of {size_bytes} has to wait"
            )

    def arrived(self, entry: SpoolEntry) -> None:
        """A payload came whole or never will."""
        with self._lock:
            self._arriving -= entry.size_bytes

    def release(self, entry: SpoolEntry) -> None:
        """Delete a payload and free its bytes; call once for each entry."""
        entry.path.unlink(missing_ok=True)
        self._free(entry)

    def discard(self, names: Iterable[str]) -> None:
        """Delete payloads that an earlier process committed and nobody took up."""
        for name in names:
            (self._directory / _checked(name)).unlink(missing_ok=True)

    def _free(self, entry: SpoolEntry) -> None:
        with self._lock:
            self._used -= entry.size_bytes
            self._by_owner[entry.owner] -= entry.size_bytes
            if not self._by_owner[entry.owner]:
                del self._by_owner[entry.owner]


def _checked(name: str) -> str:
    """Return a name that the ledger has, which may be a stranger's and then name any file.

    Raises:
        StorageError: it is none that a spool gives.

    """
    if re.fullmatch(r"\d{9,18}\.upload", name, re.ASCII) is None:
        raise StorageError(f"the ledger names {name[:80]!r} as a payload in the spool, which is no name of one: restore it from a backup")
    return name


class SpoolWriter:
    """Writes one payload; unless `commit` is called, leaving the context deletes it."""

    def __init__(self, spool: Spool, entry: SpoolEntry) -> None:
        self._spool = spool
        self._entry = entry
        self._committed = False
        self._file = os.fdopen(os.open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb")

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            StorageError: the disk refuses.

        """
        try:
            self._file.write(data)
        except OSError as exc:
            raise StorageError(f"cannot write to the spool ({exc.strerror or exc})") from exc

    def commit(self) -> SpoolEntry:
        """Keep the payload; returns when it is durable.

        Raises:
            StorageError: the disk refuses.

        """
        try:
            self._file.flush()
            crash_point(CrashPoint.SPOOL_WRITTEN)
            self._spool.make_durable(self._file.fileno())
            self._file.close()
            crash_point(CrashPoint.SPOOL_DURABLE)
        except OSError as exc:
            raise StorageError(f"cannot write to the spool ({exc.strerror or exc})") from exc
        self._committed = True
        self._spool.arrived(self._entry)
        return self._entry

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self._committed:
            with suppress(OSError):
                self._file.close()
            self._spool.arrived(self._entry)
            self._spool.release(self._entry)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
