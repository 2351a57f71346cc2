"""Content-addressed blobs: programs in memory for the whole run, weights for as long as a round may ask for them, frozen weights mapped from a file."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

from heron_common.specification.model_spec import BlobReference


class BlobStore:
    """Bytes by SHA-256; thread-safe without a lock, for each change is one assignment."""

    def __init__(self) -> None:
        self._permanent: dict[str, bytes | mmap.mmap] = {}
        self._rounds: list[dict[str, bytes]] = [{}, {}]

    def put(self, data: bytes) -> BlobReference:
        """Keep a blob for the life of the process."""
        reference = _reference(data)
        self._permanent[reference.sha256] = data
        return reference

    def put_file(self, reference: BlobReference, path: Path) -> None:
        """Keep a blob that lies in a file, for the life of the process; its bytes stay on disk."""
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._permanent[reference.sha256] = mapped

    def put_round(self, blobs: list[bytes]) -> list[BlobReference]:
        """Keep the blobs of a new round; those of the round before last are forgotten."""
        references = [_reference(data) for data in blobs]
        self._rounds = [self._rounds[1], {r.sha256: data for r, data in zip(references, blobs, strict=True)}]
        return references

    def get(self, sha256: str) -> bytes | mmap.mmap | None:
        """Return a blob or None."""
        if sha256 in self._permanent:
            return self._permanent[sha256]
        return next((blobs[sha256] for blobs in self._rounds if sha256 in blobs), None)


def _reference(data: bytes) -> BlobReference:
    return BlobReference(hashlib.sha256(data).hexdigest(), len(data))
