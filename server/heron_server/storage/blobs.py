"""Content-addressed blobs in memory: programs for the whole run, weights for as long as a round may ask for them."""

from __future__ import annotations

import hashlib
import threading

from heron_common.assignment import BlobReference


class BlobStore:
    """Bytes by SHA-256; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._permanent: dict[str, bytes] = {}
        self._rounds: list[dict[str, bytes]] = [{}, {}]

    def put(self, data: bytes) -> BlobReference:
        """Keep a blob for the life of the process."""
        reference = _reference(data)
        with self._lock:
            self._permanent[reference.sha256] = data
        return reference

    def put_round(self, blobs: list[bytes]) -> list[BlobReference]:
        """Keep the blobs of a new round; those of the round before last are forgotten."""
        references = [_reference(data) for data in blobs]
        with self._lock:
            self._rounds = [self._rounds[1], {r.sha256: data for r, data in zip(references, blobs, strict=True)}]
        return references

    def get(self, sha256: str) -> bytes | None:
        """Return a blob or None."""
        with self._lock:
            for blobs in (self._permanent, *self._rounds):
                if sha256 in blobs:
                    return blobs[sha256]
        return None


def _reference(data: bytes) -> BlobReference:
    return BlobReference(hashlib.sha256(data).hexdigest(), len(data))
