"""Uploads that are wrong in every way: each is refused with its code, leaves nothing behind, and a good one still works after it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from heron_common.error_catalog import ErrorCode
from heron_common.protocol.chunks import MAX_CHUNK_BYTES
from heron_proto.v1 import split_training_pb2 as pb
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import OpenStream, WireClient, refused, trailer_of, upload_messages

Messages = list[pb.TrainBatchRequest]
STEPS = 200


class Arena:
    """One server and one client for all tests here; each takes a local step of its own."""

    def __init__(self, server: RunningServer, client: WireClient) -> None:
        self.server = server
        self.client = client
        self._next = 0

    def step(self) -> int:
        eventually(lambda: self.server.untrained == 0, what="the trainer to be idle")
        self._next += 1
        return self._next - 1

    def good(self, step: int) -> Messages:
        return self.client.upload_parts(step, seed=step)

    def payload(self, step: int) -> list[bytes]:
        return [message.chunk.data for message in self.good(step)[1:3]]


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, program_cache_dir: Any) -> Iterator[Arena]:
    config = tiny_config(run_dir=tmp_path_factory.mktemp("arena") / "run", program_cache=program_cache_dir, local_steps=STEPS)
    server = RunningServer(config)
    with WireClient(server.target) as client:
        client.join()
        client.await_assignment()
        yield Arena(server, client)
    server.stop()


def tensors(arena: Arena, **z: Any) -> list[pb.TensorSpec]:
    shape_z, shape_y = (a.shape for a in arena.client.batch())
    return [
        pb.TensorSpec(**{"name": "activations", "dtype": pb.DTYPE_FLOAT32, "shape": shape_z, **z}),
        pb.TensorSpec(name="labels", dtype=pb.DTYPE_INT64, shape=shape_y),
    ]


def header(**overrides: Any) -> Callable[[Arena, int], Messages]:
    return lambda arena, step: arena.client.upload_parts(step, **{"local_step": step, **overrides})


def announced(**z: Any) -> Callable[[Arena, int], Messages]:
    return lambda arena, step: arena.client.upload_parts(step, tensors=tensors(arena, **z))


def reference(index: int, attempt: int) -> Callable[[Arena, int], Messages]:
    return header(round=pb.RoundReference(round_index=index, attempt=attempt))


def values(change: Callable[[Any, Any], None]) -> Callable[[Arena, int], Messages]:
    def messages(arena: Arena, step: int) -> Messages:
        z, y = arena.client.batch(step)
        change(z.reshape(-1), y)
        return upload_messages(arena.client.upload_header(step), [z.tobytes(), y.tobytes()])

    return messages


def put(array: Any, value: float) -> None:
    array[len(array) // 2] = value


def pieces(cut: Callable[[bytes, bytes], tuple[list[bytes], list[int]]], true_trailer: bool = False) -> Callable[[Arena, int], Messages]:
    """Chunks as `cut` makes them of the payload; with the trailer of what is sent, or of what should have been."""

    def messages(arena: Arena, step: int) -> Messages:
        z, y = arena.payload(step)
        data, indices = cut(z, y)
        return upload_messages(arena.client.upload_header(step), data, trailer_of([z, y]) if true_trailer else None, indices)

    return messages


def trailer(change: Callable[[pb.Trailer], pb.Trailer]) -> Callable[[Arena, int], Messages]:
    def messages(arena: Arena, step: int) -> Messages:
        good = arena.good(step)
        return [*good[:-1], pb.TrainBatchRequest(trailer=change(good[-1].trailer))]

    return messages


WRONG: dict[str, tuple[ErrorCode, Callable[[Arena, int], Messages]]] = {
    "shape": (ErrorCode.INVALID_TENSOR, announced(shape=(4, 2, 2, 3))),
    "more rows": (ErrorCode.INVALID_TENSOR, announced(shape=(8, 2, 2, 2))),
    "dtype": (ErrorCode.INVALID_TENSOR, announced(dtype=pb.DTYPE_INT64)),
    "unspecified dtype": (ErrorCode.INVALID_TENSOR, announced(dtype=0)),
    "unknown dtype": (ErrorCode.INVALID_TENSOR, announced(dtype=77)),
    "rank 100": (ErrorCode.INVALID_TENSOR, announced(shape=[1] * 100)),
    "scalar": (ErrorCode.INVALID_TENSOR, announced(shape=())),
    "negative dimension": (ErrorCode.INVALID_TENSOR, announced(shape=(4, -2, 2, -2))),
    "zero dimension": (ErrorCode.INVALID_TENSOR, announced(shape=(4, 0, 2, 2))),
    "huge dimensions": (ErrorCode.INVALID_TENSOR, announced(shape=[2**62] * 8)),
    "another name": (ErrorCode.INVALID_TENSOR, announced(name="x" * 100_000)),
    "no tensors": (ErrorCode.INVALID_TENSOR, header(tensors=[])),
    "too many tensors": (ErrorCode.INVALID_TENSOR, header(tensors=[pb.TensorSpec(dtype=pb.DTYPE_INT64, shape=[1])] * 1000)),
    "announced too large": (ErrorCode.OVERSIZED, header(total_bytes=2**64 - 1)),
    "announced too small": (ErrorCode.INVALID_TENSOR, header(total_bytes=0)),
    "NaN": (ErrorCode.NON_FINITE, values(lambda z, _y: put(z, np.nan))),
    "infinity": (ErrorCode.NON_FINITE, values(lambda z, _y: put(z, np.inf))),
    "minus infinity": (ErrorCode.NON_FINITE, values(lambda z, _y: put(z, -np.inf))),
    "label too large": (ErrorCode.LABEL_RANGE, values(lambda _z, y: put(y, 3))),
    "negative label": (ErrorCode.LABEL_RANGE, values(lambda _z, y: put(y, -1))),
    "huge label": (ErrorCode.LABEL_RANGE, values(lambda _z, y: put(y, 2**62))),
    "wrong digest": (ErrorCode.DIGEST_MISMATCH, trailer(lambda t: pb.Trailer(length_bytes=t.length_bytes, sha256=b"x" * 32))),
    "short digest": (ErrorCode.DIGEST_MISMATCH, trailer(lambda t: pb.Trailer(length_bytes=t.length_bytes, sha256=t.sha256[:8]))),
    "hexadecimal digest": (
        ErrorCode.DIGEST_MISMATCH,
        trailer(lambda t: pb.Trailer(length_bytes=t.length_bytes, sha256=t.sha256.hex().encode())),
    ),
    "wrong length": (ErrorCode.TRUNCATED, trailer(lambda t: pb.Trailer(length_bytes=t.length_bytes + 1, sha256=t.sha256))),
    "flipped byte": (ErrorCode.DIGEST_MISMATCH, pieces(lambda z, y: ([bytes([z[0] ^ 1]) + z[1:], y], [0, 1]), true_trailer=True)),
    "missing tensor": (ErrorCode.TRUNCATED, pieces(lambda z, _y: ([z], [0]))),
    "missing row": (ErrorCode.TRUNCATED, pieces(lambda z, y: ([z, y[:-8]], [0, 1]))),
    "no trailer": (ErrorCode.TRUNCATED, lambda arena, step: arena.good(step)[:-1]),
    "header only": (ErrorCode.TRUNCATED, lambda arena, step: arena.good(step)[:1]),
    "header and trailer": (ErrorCode.TRUNCATED, pieces(lambda _z, _y: ([], []))),
    "two headers": (ErrorCode.TRUNCATED, lambda arena, step: [arena.good(step)[0], *arena.good(step)]),
    "empty message": (ErrorCode.TRUNCATED, lambda arena, step: [*arena.good(step)[:2], pb.TrainBatchRequest(), *arena.good(step)[2:]]),
    "chunk before header": (ErrorCode.TRUNCATED, lambda arena, step: arena.good(step)[1:]),
    "empty stream": (ErrorCode.TRUNCATED, lambda _arena, _step: []),
    "oversized chunk": (ErrorCode.OVERSIZED, pieces(lambda _z, y: ([b"\0" * (MAX_CHUNK_BYTES + 4), y], [0, 1]))),
    "oversized tensor": (ErrorCode.OVERSIZED, pieces(lambda z, y: ([z, z[:4], y], [0, 0, 1]))),
    "oversized last tensor": (ErrorCode.OVERSIZED, pieces(lambda z, y: ([z, y, y], [0, 1, 1]))),
    "tensors out of order": (ErrorCode.INVALID_TENSOR, pieces(lambda z, y: ([y, z], [1, 0]))),
    "back to the first tensor": (ErrorCode.INVALID_TENSOR, pieces(lambda z, y: ([z, y[:8], b"", y[8:]], [0, 1, 0, 1]))),
    "skipped rest": (ErrorCode.INVALID_TENSOR, pieces(lambda z, y: ([z[:8], y], [0, 1]))),
    "tensor that was not announced": (ErrorCode.INVALID_TENSOR, pieces(lambda z, y: ([z, y, y], [0, 1, 2]))),
    "far tensor": (ErrorCode.INVALID_TENSOR, pieces(lambda z, _y: ([z], [2**32 - 1]))),
    "part of an element": (ErrorCode.INVALID_TENSOR, pieces(lambda z, y: ([z[:3], z[3:], y], [0, 0, 1]))),
    "past round": (ErrorCode.ROUND_OVER, reference(7, 0)),
    "wrong attempt": (ErrorCode.ROUND_OVER, reference(0, 1)),
    "huge round": (ErrorCode.ROUND_OVER, reference(2**32 - 1, 2**32 - 1)),
    "another run": (ErrorCode.ROUND_OVER, header(run_id="0" * 32)),
    "no run": (ErrorCode.ROUND_OVER, header(run_id="")),
    "step outside the plan": (ErrorCode.UNEXPECTED_UPLOAD, header(local_step=STEPS)),
    "huge step": (ErrorCode.UNEXPECTED_UPLOAD, header(local_step=2**32 - 1)),
    "probes outside the plan": (ErrorCode.UNEXPECTED_UPLOAD, header(num_probes=1)),
    "huge number of probes": (ErrorCode.UNEXPECTED_UPLOAD, header(num_probes=2**32 - 1)),
    "probe purpose": (ErrorCode.UNEXPECTED_UPLOAD, header(purpose=pb.UPLOAD_PURPOSE_PROBE)),
    "no purpose": (ErrorCode.INVALID_TENSOR, header(purpose=0)),
    "unknown purpose": (ErrorCode.INVALID_TENSOR, header(purpose=9)),
    "unknown session": (ErrorCode.SESSION_UNKNOWN, header(session="0" * 32)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_upload_is_refused_and_a_good_one_works_after_it(arena: Arena, name: str) -> None:
    code, make = WRONG[name]
    step = arena.step()
    trained = arena.server.sample("uploads_total", outcome="trained")
    with refused(arena.server, code):
        arena.client.send_upload(make(arena, step))
    assert arena.server.sample("uploads_total", outcome="trained") == trained
    arena.client.send_upload(arena.good(step))
    eventually(lambda: arena.server.sample("uploads_total", outcome="trained") == trained + 1, what="the good upload to be trained")


def test_chunks_may_be_as_small_as_an_element(arena: Arena) -> None:
    step = arena.step()
    z, y = arena.payload(step)
    data = [*(z[i : i + 4] for i in range(0, len(z), 4)), y[:8], y[8:]]
    indices = [0] * (len(data) - 2) + [1, 1]
    arena.client.send_upload(upload_messages(arena.client.upload_header(step), data, None, indices))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_chunks_of_nothing_are_refused(arena: Arena, place: int) -> None:
    step = arena.step()
    data = list(arena.payload(step))
    data.insert(place, b"")
    indices = sorted([0, 1, min(place, 1)])
    with refused(arena.server, ErrorCode.INVALID_TENSOR) as caught:
        arena.client.send_upload(upload_messages(arena.client.upload_header(step), data, None, indices))
    assert "no bytes" in (caught.value.details() or "")
    arena.client.send_upload(arena.good(step))


def test_the_spooled_payload_is_the_one_that_was_sent(arena: Arena) -> None:
    step = arena.step()
    arena.client.send_upload(arena.good(step))
    attempt = arena.server.state.attempt
    assert attempt is not None
    (upload,) = [u for u in attempt.uploads.values() if u.key.local_step == step]
    assert upload.sha256 == hashlib.sha256(b"".join(arena.payload(step))).hexdigest()


def test_a_message_beyond_the_cap_does_not_reach_the_service(arena: Arena) -> None:
    step = arena.step()
    messages = upload_messages(arena.client.upload_header(step), [b"\0" * (9 << 20)])
    files = arena.server.spooled_files
    with pytest.raises(Exception, match=r"larger than max|RESOURCE_EXHAUSTED"):
        arena.client.send_upload(messages)
    eventually(lambda: not arena.server.state.registry.by_name["a"].stream, what="the stream to end")
    assert arena.server.spooled_files == files
    arena.client.send_upload(arena.good(step))


@pytest.mark.parametrize("sent", [1, 2, 3])
def test_a_cancelled_upload_leaves_nothing_behind(arena: Arena, sent: int) -> None:
    step = arena.step()
    record = arena.server.state.registry.by_name["a"]
    used, files = arena.server.spooled_bytes, arena.server.spooled_files
    stream = OpenStream(arena.client).send(*arena.good(step)[:sent])
    eventually(lambda: record.stream, what="the stream to be admitted")
    assert arena.server.spooled_bytes - used == sum(map(len, arena.payload(step))), "room is reserved by the header"
    stream.cancel()
    eventually(lambda: record.stream is None and arena.server.spooled_bytes == used, what="the reservation to be freed")
    assert arena.server.spooled_files == files
    arena.client.send_upload(arena.good(step))
