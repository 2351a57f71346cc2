"""Chunks: whole rows where a row fits, nothing lost, and a receiver that refuses disorder, excess, truncation and a wrong digest."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import DType, TensorSpec, raw_bytes
from heron_common.protocol.chunks import MAX_CHUNK_BYTES, StreamAccount, StreamReceiver, split_rows
from heron_common.protocol.grpc_options import MAX_MESSAGE_BYTES

ROWS = TensorSpec("activations", DType.FLOAT32, (4, 2))
LABELS = TensorSpec("labels", DType.INT64, (4,))
NUM_BYTES = ROWS.size_bytes + LABELS.size_bytes


def pieces_of(length: int, row_bytes: int, max_bytes: int) -> list[memoryview]:
    data = memoryview(np.random.default_rng(length).bytes(length))
    pieces = list(split_rows(data, row_bytes, max_bytes))
    assert b"".join(pieces) == bytes(data)
    return pieces


@pytest.mark.parametrize("row_bytes", [8, 24, 63, 64])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 17])
def test_rows_that_fit_are_never_cut(rows: int, row_bytes: int) -> None:
    pieces = pieces_of(rows * row_bytes, row_bytes, 64)
    assert all(len(piece) % row_bytes == 0 and 0 < len(piece) <= 64 for piece in pieces)
    assert len(pieces) == -(-rows // (64 // row_bytes))


@pytest.mark.parametrize("row_bytes", [72, 128, 1000])
@pytest.mark.parametrize("max_bytes", [8, 63, 64, 71])
def test_a_row_that_does_not_fit_is_cut_between_elements(row_bytes: int, max_bytes: int) -> None:
    pieces = pieces_of(3 * row_bytes, row_bytes, max_bytes)
    assert all(len(piece) % 8 == 0 for piece in pieces)
    assert {len(piece) for piece in pieces[:-1]} == {max_bytes // 8 * 8}


@pytest.mark.parametrize(
    ("length", "sizes"),
    [
        (0, []),
        (MAX_CHUNK_BYTES - 4, [MAX_CHUNK_BYTES - 4]),
        (MAX_CHUNK_BYTES, [MAX_CHUNK_BYTES]),
        (MAX_CHUNK_BYTES + 4, [MAX_CHUNK_BYTES, 4]),
    ],
    ids=["nothing", "below", "limit", "above"],
)
def test_the_default_limit_is_used_to_the_byte(length: int, sizes: list[int]) -> None:
    assert [len(piece) for piece in split_rows(memoryview(bytes(length)), 4)] == sizes


def test_pieces_are_views_of_the_data() -> None:
    array = np.zeros(8, np.float32)
    pieces = list(split_rows(raw_bytes(array), 4, 16))
    array[:] = 1.0
    assert b"".join(pieces) == array.tobytes()


def test_a_full_chunk_fits_a_message_with_room_for_its_frame() -> None:
    assert MAX_CHUNK_BYTES * 2 <= MAX_MESSAGE_BYTES


def test_an_account_digests_the_concatenation_however_it_was_cut() -> None:
    account = StreamAccount()
    for piece in (b"", b"a", memoryview(b"bc"), b""):
        account.add(piece)
    assert (account.length_bytes, account.sha256) == (3, hashlib.sha256(b"abc").digest())


def received(*chunks: tuple[int, bytes]) -> StreamReceiver:
    receiver = StreamReceiver((ROWS, LABELS))
    for index, data in chunks:
        receiver.check_chunk(index, data)
    return receiver


PAYLOAD = bytes(range(NUM_BYTES))
FIRST, SECOND = PAYLOAD[: ROWS.size_bytes], PAYLOAD[ROWS.size_bytes :]


@pytest.mark.parametrize("size", [1, 8, 31, 32])
def test_a_whole_stream_is_accepted_however_it_is_cut(size: int) -> None:
    chunks = [(index, data[i : i + size]) for index, data in ((0, FIRST), (1, SECOND)) for i in range(0, len(data), size)]
    assert received(*chunks).check_trailer(NUM_BYTES, hashlib.sha256(PAYLOAD).digest()) == hashlib.sha256(PAYLOAD).hexdigest()


def test_a_chunk_is_answered_with_its_tensor() -> None:
    receiver = StreamReceiver((ROWS, LABELS))
    assert receiver.check_chunk(0, FIRST) == ROWS
    assert receiver.check_chunk(1, SECOND) == LABELS


def test_a_stream_of_no_tensors_needs_only_its_trailer() -> None:
    assert StreamReceiver(()).check_trailer(0, hashlib.sha256().digest()) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    "chunks",
    [[(1, b"")], [(1, SECOND)], [(0, FIRST[:-1]), (1, b"")], [(0, FIRST), (1, SECOND[:8]), (0, b"")]],
    ids=["second-first", "second-first-whole", "before-the-first-is-whole", "back-to-the-first"],
)
def test_chunks_out_of_order_are_refused(chunks: list[tuple[int, bytes]]) -> None:
    with pytest.raises(RefusedError, match=f"one of tensor {chunks[-1][0]} came out of order") as refusal:
        received(*chunks)
    assert refusal.value.code is ErrorCode.INVALID_TENSOR


@pytest.mark.parametrize("before", [[], [(0, FIRST[:8])], [(0, FIRST)], [(0, FIRST), (1, SECOND)]])
def test_chunks_of_nothing_are_refused(before: list[tuple[int, bytes]]) -> None:
    index = max(0, len(before) - 1)
    with pytest.raises(RefusedError, match=f"a chunk of no bytes came for tensor {index}") as refusal:
        received(*before, (index, b""))
    assert refusal.value.code is ErrorCode.INVALID_TENSOR


@pytest.mark.parametrize("index", [2, 2**32 - 1])
def test_a_chunk_of_a_tensor_that_was_not_announced_is_refused(index: int) -> None:
    with pytest.raises(RefusedError, match=f"announces 2 tensors, but a chunk of tensor {index} came") as refusal:
        received((0, FIRST), (1, SECOND), (index, b"x"))
    assert refusal.value.code is ErrorCode.INVALID_TENSOR


@pytest.mark.parametrize("excess", [1, 8])
def test_more_bytes_than_announced_are_refused_and_not_counted(excess: int) -> None:
    receiver = received((0, FIRST[:-8]))
    with pytest.raises(RefusedError, match="'activations' was announced with 32 bytes, but more came") as refusal:
        receiver.check_chunk(0, bytes(8 + excess))
    assert refusal.value.code is ErrorCode.OVERSIZED
    receiver.check_chunk(0, FIRST[-8:])
    receiver.check_chunk(1, SECOND)
    receiver.check_trailer(NUM_BYTES, hashlib.sha256(PAYLOAD).digest())


def test_the_limit_of_a_chunk_is_exact() -> None:
    spec = TensorSpec("big", DType.FLOAT32, (MAX_CHUNK_BYTES,))
    StreamReceiver((spec,)).check_chunk(0, bytes(MAX_CHUNK_BYTES))
    with pytest.raises(RefusedError, match=f"at most {MAX_CHUNK_BYTES} bytes, but {MAX_CHUNK_BYTES + 1} came") as refusal:
        StreamReceiver((spec,)).check_chunk(0, bytes(MAX_CHUNK_BYTES + 1))
    assert refusal.value.code is ErrorCode.OVERSIZED


@pytest.mark.parametrize("missing", [1, 8, len(SECOND)])
def test_a_stream_that_ended_early_is_refused_even_when_its_trailer_agrees_with_it(missing: int) -> None:
    came = NUM_BYTES - missing
    receiver = received((0, FIRST), *([(1, SECOND[:-missing])] if SECOND[:-missing] else []))
    for length in (came, NUM_BYTES):
        with pytest.raises(RefusedError, match=f"expected {NUM_BYTES} bytes, {came} came and the trailer says {length}") as refusal:
            receiver.check_trailer(length, hashlib.sha256(PAYLOAD[:came]).digest())
        assert refusal.value.code is ErrorCode.TRUNCATED


@pytest.mark.parametrize("length", [0, NUM_BYTES - 1, NUM_BYTES + 1])
def test_a_trailer_with_another_length_is_refused(length: int) -> None:
    with pytest.raises(RefusedError) as refusal:
        received((0, FIRST), (1, SECOND)).check_trailer(length, hashlib.sha256(PAYLOAD).digest())
    assert refusal.value.code is ErrorCode.TRUNCATED


@pytest.mark.parametrize("digest", [b"", bytes(32), hashlib.sha256(PAYLOAD).digest()[:31], hashlib.sha256(PAYLOAD[::-1]).digest()])
def test_a_wrong_digest_is_refused_and_asks_to_send_again(digest: bytes) -> None:
    with pytest.raises(RefusedError, match="send the upload again") as refusal:
        received((0, FIRST), (1, SECOND)).check_trailer(NUM_BYTES, digest)
    assert refusal.value.code is ErrorCode.DIGEST_MISMATCH
