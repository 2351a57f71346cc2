"""Where a blob goes as it comes: into memory or into a file, checked against size and digest, and gone on with where it was interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, Protocol

from heron_client.state_directory import has_digest
from heron_common.errors import ProgramError, StorageError
from heron_common.specification.model_spec import BlobReference


class Download(Protocol):
    """A blob on its way; `offset_bytes` of it are here already."""

    blob: BlobReference

    @property
    def offset_bytes(self) -> int:
        """Return how much is here."""
        ...

    def take(self, piece: bytes) -> None:
        """Append a piece; raises ProgramError if it is more than was announced, StorageError if the disk refuses."""
        ...

    def finish(self) -> None:
        """Check the whole; raises ProgramError if it is not what the digest names, and begins anew then."""
        ...


class MemoryDownload:
    """Into memory of the blob's size, without a copy beside it; what stands there before `finish` is neither the blob nor what was there."""

    def __init__(self, blob: BlobReference, target: memoryview) -> None:
        self.blob = blob
        self._target = target
        self._begin()

    def _begin(self) -> None:
        self.offset_bytes = 0
        self._digest = hashlib.sha256()

    def take(self, piece: bytes) -> None:
        end = self.offset_bytes + len(piece)
        if end > len(self._target):
            self._begin()
            raise ProgramError(f"blob {self.blob.sha256[:12]} was announced with {len(self._target)} bytes, but more came: it is refused")
        self._target[self.offset_bytes : end] = piece
        self._digest.update(piece)
        self.offset_bytes = end

    def finish(self) -> None:
        if self.offset_bytes != len(self._target) or self._digest.hexdigest() != self.blob.sha256:
            self._begin()
            raise ProgramError(f"blob {self.blob.sha256[:12]} does not match its digest: it is refused")


class FileDownload:
    """Into a file beside its place, which it takes when it is whole; what an earlier process fetched of it counts."""

    def __init__(self, blob: BlobReference, path: Path) -> None:
        """Open the partial file.

        Raises:
            StorageError: the disk refuses.

        """
        self.blob = blob
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        try:
            self._file: BinaryIO = self._partial.open("ab")
            self.offset_bytes = self._file.tell()
        except OSError as exc:
            raise self._refused(exc) from exc

    def take(self, piece: bytes) -> None:
        try:
            if self.offset_bytes + len(piece) > self.blob.size_bytes:
                # Of another blob, or damaged: `finish` says so, and the next call begins anew.
                self._file.truncate(0)
                self.offset_bytes = 0
                raise ProgramError(f"blob {self.blob.sha256[:12]} has {self.blob.size_bytes} bytes, but more came: it is refused")
            self._file.write(piece)
        except OSError as exc:
            raise self._refused(exc) from exc
        self.offset_bytes += len(piece)

    def finish(self) -> None:
        try:
            self._file.flush()
            if not has_digest(self._partial, self.blob):
                self._file.truncate(0)
                self.offset_bytes = 0
                raise ProgramError(f"blob {self.blob.sha256[:12]} does not match its digest: it is refused")
            self._partial.replace(self._path)
        except OSError as exc:
            raise self._refused(exc) from exc

    def close(self) -> None:
        """Close the file; what is there of it stays for another time."""
        self._file.close()
        if not self.offset_bytes:
            self._partial.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write {self._partial} ({error.strerror or error}): free some space or choose another --state-dir")
