"""Blobs by digest, into memory or a file: how a session, which tries again, and a check, which does not, come by them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from heron_client.network.downloads import Download, FileDownload, MemoryDownload
from heron_common.data.tokeniser import MAX_TOKENIZER_BYTES
from heron_common.errors import ProgramError
from heron_common.specification.model_spec import BlobReference

Fetch = Callable[[Download, str], None]
"""(download, its kind for the byte count): fetches what the download lacks."""

Retry = Callable[[Callable[[], None], str], None]
"""(call, what it is to do, for the log): makes the call, again and again where that makes sense."""


def _once(call: Callable[[], None], _: str) -> None:
    call()


class BlobFetcher:
    """Fetches blobs that match their digests; of each, `kind` is for the byte count and `what` for the log."""

    def __init__(self, fetch: Fetch, retry: Retry = _once) -> None:
        self._fetch = fetch
        self._retry = retry

    def fetch(self, blob: BlobReference, *, kind: str, what: str) -> bytes:
        """Return a blob.

        Raises:
            HeronError: what came is not what the digest names, or the server cannot be reached.

        """
        data = bytearray(blob.size_bytes)
        self.fetch_into(blob, memoryview(data), kind=kind, what=what)
        return bytes(data)

    def fetch_into(self, blob: BlobReference, target: memoryview, *, kind: str, what: str) -> None:
        """Fetch a blob into memory of its size; raises as `fetch` does."""
        download = MemoryDownload(blob, target)
        self._retry(lambda: self._fetch(download, kind), f"fetch {what}")

    def fetch_file(self, blob: BlobReference, path: Path, *, kind: str, what: str) -> None:
        """Fetch a blob into a file, which appears when it is whole; what came before an interruption is not fetched again.

        Raises:
            HeronError: as `fetch`, or the disk refuses.

        """
        with closing(FileDownload(blob, path)) as download:
            self._retry(lambda: self._fetch(download, kind), f"fetch {what}")

    def tokenizer(self, blob: BlobReference) -> bytes:
        """Return a run's tokenizer.

        Raises:
            ProgramError: it is larger than any tokenizer, which is found out before it is fetched.
            HeronError: as `fetch`.

        """
        if blob.size_bytes > MAX_TOKENIZER_BYTES:
            raise ProgramError(
                f"a tokenizer has at most {MAX_TOKENIZER_BYTES} bytes, but the run's has {blob.size_bytes}: choose another on the server"
            )
        return self.fetch(blob, kind="tokenizer", what="the tokenizer")
