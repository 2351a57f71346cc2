"""Split tensors into chunks under 1 MiB by memoryview, and account for length and digest on both ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import TensorSpec

MAX_CHUNK_BYTES = 1 << 20
"""1 MiB: well inside every gRPC default, large enough that per-message cost vanishes."""

USUAL_CHUNK_BYTES = 256 << 10
"""A chunk is copied several times on its way through protobuf and gRPC, and so small it stays in a core's cache, and in the heap, meanwhile: a device that
had fetched 271 MB by the mebibyte kept 6 MB of gRPC's buffers afterwards, and so keeps 1."""


def split_rows(data: memoryview, row_bytes: int, max_bytes: int = MAX_CHUNK_BYTES) -> Iterator[memoryview]:
    """Yield consecutive pieces of at most `max_bytes`, whole rows where a row fits.

    A row larger than `max_bytes` is split at multiples of 8 bytes, so that no element is ever cut.
    """
    step = (max_bytes // row_bytes) * row_bytes if row_bytes <= max_bytes else max_bytes // 8 * 8
    for start in range(0, len(data), step):
        yield data[start : start + step]


def usual_chunk_bytes(row_bytes: int) -> int:
    """Return the size of chunks of such rows: the usual one, or a row if that is larger and fits."""
    return max(USUAL_CHUNK_BYTES, row_bytes) if row_bytes <= MAX_CHUNK_BYTES else MAX_CHUNK_BYTES


class StreamAccount:
    """Counts and digests a stream's chunk bytes; both sender and receiver keep one."""

    def __init__(self) -> None:
        self.length_bytes = 0
        self._digest = hashlib.sha256()

    def add(self, data: bytes | memoryview) -> None:
        """Account for one chunk."""
        self.length_bytes += len(data)
        self._digest.update(data)

    @property
    def sha256(self) -> bytes:
        """The digest of everything added so far."""
        return self._digest.digest()


class StreamReceiver:
    """Checks chunks against the announced tensors, one after the other; holds no payload itself."""

    def __init__(self, specs: tuple[TensorSpec, ...]) -> None:
        self._specs = specs
        self._received = [0] * len(specs)
        self._account = StreamAccount()

    def received_bytes(self, tensor_index: int) -> int:
        """Return how much of a tensor has come; 0 for one that was not announced."""
        return self._received[tensor_index] if tensor_index < len(self._received) else 0

    def check_chunk(self, tensor_index: int, data: bytes) -> TensorSpec:
        """Account for one chunk and return its tensor's specification.

        Raises:
            RefusedError: OVERSIZED if the chunk or its tensor is too large; INVALID_TENSOR if it is empty, or chunks come out of order.

        """
        if len(data) > MAX_CHUNK_BYTES:
            raise RefusedError(ErrorCode.OVERSIZED, f"a chunk is at most {MAX_CHUNK_BYTES} bytes, but {len(data)} came")
        if tensor_index >= len(self._specs):
            raise RefusedError(
                ErrorCode.INVALID_TENSOR, f"the header announces {len(self._specs)} tensors, but a chunk of tensor {tensor_index} came"
            )
        if any(self._received[i] < self._specs[i].size_bytes for i in range(tensor_index)) or any(self._received[tensor_index + 1 :]):
            raise RefusedError(
                ErrorCode.INVALID_TENSOR, f"chunks come tensor by tensor, but one of tensor {tensor_index} came out of order"
            )
        if not data:
            # They would keep a stream moving for ever, and it would never end.
            raise RefusedError(ErrorCode.INVALID_TENSOR, f"a chunk of no bytes came for tensor {tensor_index}: leave empty chunks out")
        spec = self._specs[tensor_index]
        if self._received[tensor_index] + len(data) > spec.size_bytes:
            raise RefusedError(ErrorCode.OVERSIZED, f"tensor {spec.name!r} was announced with {spec.size_bytes} bytes, but more came")
        self._received[tensor_index] += len(data)
        self._account.add(data)
        return spec

    def check_trailer(self, length_bytes: int, sha256: bytes) -> str:
        """Compare the trailer with what arrived and return the digest in hexadecimal.

        Raises:
            RefusedError: TRUNCATED or DIGEST_MISMATCH.

        """
        expected = sum(spec.size_bytes for spec in self._specs)
        if self._account.length_bytes != expected or length_bytes != expected:
            raise RefusedError(
                ErrorCode.TRUNCATED, f"expected {expected} bytes, {self._account.length_bytes} came and the trailer says {length_bytes}"
            )
        if self._account.sha256 != sha256:
            raise RefusedError(
                ErrorCode.DIGEST_MISMATCH, "the SHA-256 in the trailer is not that of the bytes that came: send the upload again"
            )
        return sha256.hex()
