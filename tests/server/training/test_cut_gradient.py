"""Gradients at the cut and judged probes over a real socket: what they are, of which version, and what a lost answer or a repeat changes: nothing."""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from heron_client.network.transport import Transport
from heron_common.error_catalog import ErrorCode
from heron_common.errors import StorageError, TransportError
from heron_common.numerics.wire_dtypes import WireDtype, decode_rows, row_bytes
from heron_common.protocol.chunks import MAX_CHUNK_BYTES
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.models.split_model import SplitModel
from heron_server.storage.spool import SpoolEntry, SpoolWriter
from tests.harness.polling import eventually
from tests.harness.simulated import differing, run_simulation
from tests.server.running_server import RunningServer
from tests.server.training.twin_back import TwinBack as Twin
from tests.server.wire_client import DEADLINE, OpenStream, WireClient, assigned, refused, trailer_of, upload_messages

Serve = Callable[..., RunningServer]

DTYPES = {"float32": pb.DTYPE_FLOAT32, "float16": pb.DTYPE_FLOAT16, "bfloat16": pb.DTYPE_BFLOAT16, "int8": pb.DTYPE_INT8}


def messages_of(client: WireClient, step: int, dtype: str = "float32", seed: int = 0) -> list[pb.TrainBatchRequest]:
    """Return an upload in a wire dtype; the values are whatever its bytes say, the same for the server and for the twin."""
    z, y = client.batch(seed)
    data = wired(z, dtype)
    tensors = [
        pb.TensorSpec(name="activations", dtype=DTYPES[dtype], shape=z.shape),
        pb.TensorSpec(name="labels", dtype=pb.DTYPE_INT64, shape=y.shape),
    ]
    header = client.upload_header(step, tensors=tensors, total_bytes=len(data) + y.nbytes)
    return upload_messages(header, [data, y.tobytes()])


def wired(z: np.ndarray[Any, Any], dtype: str) -> bytes:
    if dtype == "float16":
        return z.astype("<f2").tobytes()
    if dtype == "bfloat16":
        return (z.view("<u4") >> 16).astype("<u2").tobytes()
    if dtype == "int8":
        rows = np.clip(np.rint(z.reshape(len(z), -1) * 32), -127, 127).astype("i1")
        return b"".join(np.float32(1 / 32).tobytes() + row.tobytes() for row in rows)
    return z.tobytes()


def received(responses: Any) -> tuple[pb.UploadAnswer, bytes]:
    """Read a whole answer: scalars, chunks, and the trailer that must match them."""
    parts = list(responses)
    assert [part.WhichOneof("part") for part in parts] == ["answer", *["chunk"] * (len(parts) - 2), "trailer"]
    assert all(len(part.chunk.data) <= MAX_CHUNK_BYTES and part.chunk.tensor_index == 0 for part in parts[1:-1])
    data = b"".join(part.chunk.data for part in parts[1:-1])
    assert parts[-1].trailer == trailer_of([data])
    return parts[0].answer, data


def exchange(client: WireClient, step: int, seed: int = 0, dtype: str = "float32") -> tuple[pb.UploadAnswer, bytes]:
    return received(client.stub.TrainBatch(iter(messages_of(client, step, dtype, seed)), timeout=DEADLINE))


@pytest.fixture
def twin(tiny_model: SplitModel) -> Iterator[Twin]:
    yield Twin(tiny_model)


@pytest.mark.invariant(13, "over the wire")
@pytest.mark.parametrize("preset", ["sflv2", "ho-sfl"])
def test_the_gradient_at_the_cut_is_that_of_each_samples_own_loss_before_the_servers_step(serve: Serve, twin: Twin, preset: str) -> None:
    server = serve(preset=preset)
    (client,) = assigned(server, "a")
    for step in range(client.assignment.plan.local_steps):
        z, y = client.batch(step)
        _, data = exchange(client, step, seed=step)
        np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(z.shape), twin.cut_gradient(z, y), rtol=1e-4, atol=1e-6)
        twin.step(z, y)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8), ("int8", 1 / 127)])
def test_it_travels_in_the_wire_dtype_and_a_repeat_is_rounded_alike(serve: Serve, twin: Twin, dtype: str, error: float) -> None:
    """The error is at most half a unit in the last place, relative to a value; of int8, whose rounding is random, a unit relative to its row's largest."""
    server = serve(preset="sflv2", wire_dtype=dtype)
    (client,) = assigned(server, "a")
    z, y = client.batch()
    data = memoryview(wired(z, dtype))
    seen_by_server = decode_rows(data, WireDtype(dtype), z.shape).copy()
    _, sent = exchange(client, 0, dtype=dtype)
    _, again = exchange(client, 0, dtype=dtype)
    assert sent == again
    assert len(sent) == len(z) * row_bytes(WireDtype(dtype), math.prod(client.cut))
    want = twin.cut_gradient(seen_by_server, y)
    sizes = np.abs(want).reshape(len(want), -1)
    scale = np.broadcast_to(sizes.max(axis=1, keepdims=True), sizes.shape) if dtype == "int8" else sizes
    off = np.abs(decode_rows(memoryview(sent), WireDtype(dtype), z.shape) - want).reshape(sizes.shape)
    assert np.all(off <= error * scale * (1 + 1e-3) + 1e-6)


def test_a_gradient_larger_than_a_chunk_arrives_in_chunks(serve: Serve, twin: Twin) -> None:
    rows = 2 * MAX_CHUNK_BYTES // 32
    server = serve(preset="sflv2", batch_size=rows, local_steps=1)
    (client,) = assigned(server, "a")
    z, y = client.batch()
    pieces = z.tobytes(), y.tobytes()
    header, trailer = pb.TrainBatchRequest(header=client.upload_header(0)), pb.TrainBatchRequest(trailer=trailer_of(pieces))
    chunks = [
        pb.TrainBatchRequest(chunk=pb.TensorChunk(tensor_index=index, data=piece[start : start + MAX_CHUNK_BYTES]))
        for index, piece in enumerate(pieces)
        for start in range(0, len(piece), MAX_CHUNK_BYTES)
    ]
    _, data = received(client.stub.TrainBatch(iter([header, *chunks, trailer]), timeout=DEADLINE))
    assert len(data) == z.nbytes > MAX_CHUNK_BYTES
    some = slice(rows - 5, rows)
    np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(z.shape)[some], twin.cut_gradient(z[some], y[some]), rtol=1e-4, atol=1e-6)


@pytest.mark.invariant(19, "the server")
@pytest.mark.parametrize("lost_after", ["the upload", "the scalars", "everything"])
def test_a_lost_answer_is_given_again_and_the_server_steps_once(serve: Serve, twin: Twin, lost_after: str) -> None:
    server = serve(preset="sflv2", trains=lost_after != "the upload")
    (client,) = assigned(server, "a")
    z, y = client.batch()
    stream = OpenStream(client).send(*messages_of(client, 0))
    record = server.state.registry.by_name["a"]
    if lost_after == "the upload":
        eventually(lambda: server.sample("uploads_total", outcome="accepted") == 1, what="the upload to be accepted")
        stream.cancel()
        eventually(lambda: record.stream is None, what="the stream to end")
        server.start_training()
    else:
        parts = iter(stream.call)
        assert next(parts).HasField("answer")
        if lost_after == "everything":
            assert len(list(zip(parts, range(2), strict=False))) == 2
        stream.cancel()
        eventually(lambda: record.stream is None, what="the stream to end")
    for _ in range(2):
        _, data = exchange(client, 0)
        np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(z.shape), twin.cut_gradient(z, y), rtol=1e-4, atol=1e-6)
    assert server.sample("uploads_total", outcome="trained") == 1
    assert server.sample("uploads_total", outcome="accepted") == 1
    assert server.sample("uploads_total", outcome="repeated") == 2
    twin.step(z, y)
    _, data = exchange(client, 1)
    np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(z.shape), twin.cut_gradient(z, y), rtol=1e-4, atol=1e-6)


def test_it_stays_on_disk_until_its_round_ends_for_a_client_that_begins_the_round_again(serve: Serve) -> None:
    server = serve(preset="sflv2")
    (client,) = assigned(server, "a")
    first = [exchange(client, step, seed=step)[1] for step in range(client.assignment.plan.local_steps)]
    assert [exchange(client, step, seed=step)[1] for step in range(client.assignment.plan.local_steps)] == first
    assert len(server.spooled_files) == 2 * len(first), "payload and gradients of each"
    client.update()
    eventually(lambda: server.sample("rounds_completed_total") == 1 and server.spooled_bytes == 0, what="the spool to be empty")
    assert server.spooled_files == []


def test_gradients_that_gave_way_to_others_cost_the_one_who_asks_again_the_round(serve: Serve) -> None:
    server = serve(preset="sflv2", clients=2, min_updates=1, server_schedule="arrival", local_steps=3)
    a, b = assigned(server, "a", "b")
    for step in range(2):
        exchange(a, step)
    spool = server.parts.spool
    spool.budget_bytes = 2 * spool.used_bytes
    exchange(b, 0)
    eventually(lambda: "open.json" in {p.name for p in server.directory.checkpoints.iterdir()}, what="a checkpoint inside the round")
    assert exchange(a, 1)[1], "what it may not have yet is kept"
    with refused(server, ErrorCode.ROUND_OVER):
        exchange(a, 0)
    assert server.sample("dropped_clients_total", reason="asked_again_for_gradients_that_are_not_kept") == 1
    exchange(b, 1)


def test_files_are_deleted_only_when_the_ledger_on_disk_does_not_name_them(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(preset="sflv2", clients=1, server_schedule="arrival", local_steps=4)
    (a,) = assigned(server, "a")
    for step in range(2):
        exchange(a, step)
    spool, named = server.parts.spool, []
    release = spool.release

    def watched(entry: SpoolEntry) -> None:
        # Through a connection of its own: it sees what is committed, as the next process would.
        with closing(sqlite3.connect(server.directory.ledger)) as reader:
            rows = reader.execute("SELECT file FROM uploads UNION SELECT gradient_file FROM uploads").fetchall()
        named.append((entry.path.name,) in rows)
        release(entry)

    monkeypatch.setattr(spool, "release", watched)
    spool.budget_bytes = 2 * spool.used_bytes
    exchange(a, 2)
    eventually(lambda: (server.advance(0.0), named)[1], what="something to be given up")
    assert not any(named)


@pytest.mark.parametrize("drains", [False, True])
def test_a_full_disk_makes_training_wait_and_a_drain_leaves_the_step_to_the_restart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, drains: bool
) -> None:
    server = serve(preset="sflv2")
    (client,) = assigned(server, "a")
    refusals: list[int] = []
    opens = server.parts.spool.open

    def full(size_bytes: int, always: bool = False, owner: str = "") -> SpoolWriter:
        # What the trainer writes itself has no owner.
        if owner or (not drains and len(refusals) == 2):
            return opens(size_bytes, always, owner)
        refusals.append(size_bytes)
        raise StorageError("cannot write to the spool (No space left on device)")

    monkeypatch.setattr(server.parts.spool, "open", full)
    if not drains:
        assert exchange(client, 0)[1], "lambda came once there was room"
        return
    with ThreadPoolExecutor(1) as waiting, pytest.raises(grpc.RpcError):
        answer = waiting.submit(exchange, client, 0)
        eventually(lambda: len(refusals) >= 2, what="training to wait")
        server.parts.owner.drain()
        eventually(lambda: server.parts.worker.failure is not None, what="the trainer to give up")
        server.parts.network.stop(0.0)
        answer.result(DEADLINE)
    assert isinstance(server.parts.worker.failure, StorageError)
    (recorded,) = server.parts.ledger.attempts()
    assert [upload.state for upload in recorded.uploads] == ["accepted"]


def test_gradients_of_an_attempt_that_is_abandoned_are_deleted(serve: Serve) -> None:
    server = serve(preset="sflv2", clients=2, min_updates=2, server_schedule="arrival")
    a, b = assigned(server, "a", "b")
    _, data = exchange(a, 0)
    exchange(b, 0)
    assert data and len(server.spooled_files) == 4
    b.stub.Leave(pb.LeaveRequest(session=b.session))
    eventually(lambda: server.sample("rounds_abandoned_total") == 1 and server.spooled_bytes == 0, what="the spool to be empty")
    assert server.spooled_files == []


def test_a_client_that_is_dropped_leaves_no_gradient_behind(serve: Serve) -> None:
    server = serve(preset="sflv2", clients=2, min_updates=1, server_schedule="arrival")
    a, b = assigned(server, "a", "b")
    exchange(b, 0)
    for step in range(a.assignment.plan.local_steps):
        exchange(a, step)
    b.stub.Leave(pb.LeaveRequest(session=b.session))
    a.update()
    eventually(lambda: server.sample("rounds_completed_total") == 1 and server.spooled_bytes == 0, what="the spool to be empty")
    assert server.spooled_files == []


def test_client_after_client_the_second_waits_for_the_back_that_the_first_has_trained(serve: Serve, twin: Twin) -> None:
    server = serve(preset="sflv2", clients=2)
    a, b = assigned(server, "a", "b")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(exchange, b, 0, 7)
        eventually(lambda: server.sample("uploads_total", outcome="accepted") == 1, what="b's upload to be accepted")
        for step in range(a.assignment.plan.local_steps):
            assert not waiting.done()
            exchange(a, step, seed=step)
            twin.step(*a.batch(step))
        a.update()
        _, data = waiting.result(DEADLINE)
    z, y = b.batch(7)
    np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(z.shape), twin.cut_gradient(z, y), rtol=1e-4, atol=1e-6)


@pytest.mark.invariant(19, "the server")
@pytest.mark.parametrize("difference", ["forward", "central"])
def test_all_copies_of_a_step_are_judged_by_one_version_whoever_else_trains(serve: Serve, twin: Twin, difference: str) -> None:
    server = serve(preset="heron-server-loss", clients=2, difference=difference, server_schedule="lockstep")
    a, b = assigned(server, "a", "b")
    rows = a.assignment.plan.batch_size
    with ThreadPoolExecutor(2) as pool:
        for step in range(a.assignment.plan.local_steps):
            answers = [pool.submit(client.upload, step, seed=10 * step + n) for n, client in enumerate((a, b))]
            for n, (client, answer) in enumerate(zip((a, b), answers, strict=True)):
                z, y = client.batch(10 * step + n)
                found = answer.result(DEADLINE)
                assert found.server_version == 2 * step + n
                judged = np.array(found.probe_losses).reshape(-1, rows)
                for copied, losses in zip(np.split(z, len(judged)), judged, strict=True):
                    np.testing.assert_allclose(losses, twin.losses(copied, y), rtol=1e-5)
                again = client.upload(step, seed=10 * step + n)
                assert list(again.probe_losses) == list(found.probe_losses) and again.server_version == found.server_version
                twin.step(z[:rows], y)


def test_equal_copies_have_equal_losses_bit_for_bit(serve: Serve) -> None:
    server = serve(preset="heron-server-loss")
    (client,) = assigned(server, "a")
    z, y = client.batch()
    rows = len(y)
    same = np.concatenate([z[:rows], z[:rows]])
    answer = client.send_upload(upload_messages(client.upload_header(0), [same.tobytes(), y.tobytes()]))
    base, probe = np.array(answer.probe_losses, np.float32).reshape(2, rows)
    assert base.tobytes() == probe.tobytes()


class LosesFirstAnswers:
    """Drops the first answer to every upload after it was read whole, as a connection does that breaks right then."""

    def __init__(self, read: Callable[..., Any]) -> None:
        self._read = read
        self._lost: set[bytes] = set()

    def __call__(self, transport: Transport, *arguments: Any) -> Any:
        answer = self._read(transport, *arguments)
        key = hashlib.sha256(bytes(answer.cut_gradient) + np.array(answer.probe_losses, "<f4").tobytes()).digest()
        if key not in self._lost:
            self._lost.add(key)
            raise TransportError("the answer got lost")
        return answer


@pytest.mark.parametrize(
    ("preset", "options"),
    [("ho-sfl", {"wire_dtype": "int8", "warmup_rounds": 0}), ("sflv1", {}), ("heron-server-loss", {"warmup_rounds": 0})],
    ids=["ho-sfl", "sflv1", "heron-server-loss"],
)
def test_a_run_that_loses_the_first_answer_to_every_step_ends_like_one_that_loses_none(
    preset: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"preset": preset, "clients": 1, "rounds": 2, "local_steps": 2, "batch_size": 8, **options}
    calm = run_simulation(tmp_path / "calm", **shape)
    loses = LosesFirstAnswers(Transport._read_answer)
    monkeypatch.setattr(Transport, "_read_answer", lambda *arguments: loses(*arguments))
    rough = run_simulation(tmp_path / "rough", **shape)
    for one, other in zip(calm.boundaries, rough.boundaries, strict=True):
        assert differing(one, other) == []
    (quiet,), (noisy,) = calm.summary["clients"].values(), rough.summary["clients"].values()
    assert noisy["bytes_up"]["activations"] == 2 * quiet["bytes_up"]["activations"], "every step was sent twice, and counted twice"
    assert noisy["bytes_down"].get("cut_gradient") == (2 * quiet["bytes_down"]["cut_gradient"] if preset != "heron-server-loss" else None)


def test_an_upload_with_other_bytes_gets_no_gradient(serve: Serve) -> None:
    server = serve(preset="sflv2")
    (client,) = assigned(server, "a")
    exchange(client, 0)
    with pytest.raises(grpc.RpcError) as caught:
        exchange(client, 0, seed=1)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
