"""The bounded window and the one-answer-for-every-upload rule, against a network that fails on purpose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pytest

from heron_client.network.retry_policy import RetryPolicy
from heron_client.network.upload import Chunk, StreamEnded, Upload, UploadRequest
from heron_client.network.upload_pipeline import RoundStopped, UploadPipeline
from heron_common.error_catalog import ErrorCode
from heron_common.errors import HeronError, Interrupted, RefusedError, TransportError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import DType, Float32Array, TensorSpec, raw_bytes
from heron_common.process.clock import MonotonicClock
from heron_common.process.retry import BackoffPolicy
from heron_common.protocol.chunks import MAX_CHUNK_BYTES, USUAL_CHUNK_BYTES
from heron_common.protocol.messages import UploadAnswer, UploadPurpose
from tests.harness.polling import eventually

QUICK = BackoffPolicy(initial_seconds=0.001, cap_seconds=0.002, floor_seconds=0.0005)
Chunks = Iterator[Chunk]


def _request(rows: int = 4, probes: int = 0, step: int = 0) -> UploadRequest:
    tensors = (TensorSpec("activations", DType.FLOAT32, (rows, 256)), TensorSpec("labels", DType.INT64, (rows,)))
    return UploadRequest(
        RoundReference(0, 0), UploadPurpose.PROBE if probes else UploadPurpose.TRAIN, local_step=step, num_probes=probes, tensors=tensors
    )


def _stream(seed: int, rows: int = 4) -> Callable[[Upload], Float32Array]:
    """A deterministic step: writes row by row, returns losses."""

    def stream(upload: Upload) -> Float32Array:
        values = np.random.default_rng(seed).standard_normal((rows, 256)).astype(np.float32)
        for row in range(rows):
            upload.write(0, raw_bytes(values[row : row + 1]))
        upload.write(1, raw_bytes(np.arange(rows)))
        upload.finish()
        return values[:, 0]

    return stream


class FlakyNetwork:
    """Fails as scripted, then succeeds; remembers every payload that it saw whole."""

    def __init__(self, failures: list[HeronError]) -> None:
        self._failures = failures
        self.payloads: list[bytes] = []
        self.calls = 0

    def send(self, request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        self.calls += 1
        if self._failures:
            next(chunks)
            raise self._failures.pop(0)
        self.payloads.append(b"".join(chunk[1] for chunk in chunks if chunk))
        return UploadAnswer(7, probe_losses=(), losses=())


def _pipeline(
    send: Callable[[UploadRequest, Chunks], UploadAnswer],
    stop: threading.Event | None = None,
    over: threading.Event | None = None,
    give_up_after_seconds: float = 0.0,
    beside: bool = True,
) -> UploadPipeline:
    clock = MonotonicClock()
    policy = RetryPolicy(stop or threading.Event(), clock, Random(0), give_up_after_seconds=give_up_after_seconds, backoff=QUICK)
    return UploadPipeline(send, policy, clock=clock, round_over=over or threading.Event(), on_answer=lambda _: None, beside=beside)


@pytest.mark.parametrize("beside", [True, False])
def test_a_failed_upload_is_recomputed_and_sent_again_with_the_same_bytes(beside: bool) -> None:
    undisturbed = FlakyNetwork([])
    pipeline = _pipeline(undisturbed.send)
    pipeline.send(_request(), _stream(1))
    pipeline.settle()
    network = FlakyNetwork([TransportError("cut"), RefusedError(ErrorCode.SPOOL_FULL, "later", 0.001), TransportError("cut again")])
    pipeline = _pipeline(network.send, beside=beside)
    pipeline.send(_request(), _stream(1))
    pipeline.settle()
    assert network.calls == 4
    assert network.payloads == undisturbed.payloads


class ByHand:
    """A clock that moves when it is read."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        self.time += 1.0
        return self.time


def test_the_time_until_giving_up_begins_anew_once_the_server_was_there_again() -> None:
    # 1. The network fails for nearly as long as it may. 2. The server asks to join again, and is joined. 3. It fails for as long once more.
    failures: list[HeronError] = (
        [TransportError("cut")] * 3 + [RefusedError(ErrorCode.SESSION_UNKNOWN, "join again")] + [TransportError("cut")] * 3
    )
    network = FlakyNetwork(failures)
    policy = RetryPolicy(threading.Event(), ByHand(), Random(0), give_up_after_seconds=4.5, backoff=QUICK)
    recovered: list[HeronError] = []

    def recover(error: HeronError) -> bool:
        recovered.append(error)
        return isinstance(error, RefusedError)

    pipeline = UploadPipeline(
        network.send, policy, clock=MonotonicClock(), round_over=threading.Event(), on_answer=lambda _: None, recover=recover
    )
    pipeline.send(_request(), _stream(1))
    assert pipeline.settle() is not None
    assert network.calls == 8 and len(recovered) == 7


def test_the_upload_before_is_settled_before_the_next_is_opened() -> None:
    network = FlakyNetwork([TransportError("cut")])
    pipeline = _pipeline(network.send)
    pipeline.send(_request(step=0), _stream(1))
    pipeline.send(_request(step=1), _stream(2))
    pipeline.settle()
    assert len(network.payloads) == 2
    assert network.payloads[0] != network.payloads[1]


def test_an_upload_with_probes_waits_for_its_answer_and_others_do_not() -> None:
    network = FlakyNetwork([])
    pipeline = _pipeline(network.send)
    assert pipeline.send(_request(), _stream(1)).answer is None
    answer = pipeline.send(_request(probes=1, step=1), _stream(1)).answer
    assert answer is not None
    assert answer.server_version == 7


def test_a_refusal_for_good_is_raised_and_not_repeated() -> None:
    network = FlakyNetwork([RefusedError(ErrorCode.NON_FINITE, "NaN came")])
    pipeline = _pipeline(network.send)
    pipeline.send(_request(), _stream(1))
    with pytest.raises(RefusedError, match="NaN came"):
        pipeline.settle()
    assert network.calls == 1


def test_a_defect_in_the_upload_thread_reaches_the_training_thread() -> None:
    def broken(request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        raise ZeroDivisionError("a defect")

    stop = threading.Event()
    pipeline = _pipeline(broken, stop)
    pipeline.send(_request(), _stream(1))
    stop.set()
    with pytest.raises(Interrupted):
        pipeline.settle()


def test_a_round_that_is_over_ends_the_retries() -> None:
    over = threading.Event()
    network = FlakyNetwork([TransportError("cut")] * 1000)
    pipeline = _pipeline(network.send, over=over)
    pipeline.send(_request(), _stream(1))
    over.set()
    with pytest.raises(RoundStopped):
        pipeline.settle()


def test_compute_waits_while_the_window_is_full_and_goes_on_when_it_drains() -> None:
    gate, taken = threading.Event(), []

    def slow(request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        for chunk in chunks:
            gate.wait(30)
            taken.append(len(chunk[1]) if chunk else 0)
        return UploadAnswer(0, probe_losses=(), losses=())

    rows = 4 * MAX_CHUNK_BYTES // 1024
    upload = Upload(_request(rows), slow, clock=MonotonicClock(), window_bytes=MAX_CHUNK_BYTES)
    written = threading.Event()

    def write() -> None:
        _stream(3, rows)(upload)
        written.set()

    threading.Thread(target=write, daemon=True).start()
    assert not written.wait(0.3), "4 MiB were taken by a window of 1 MiB although nothing was sent"
    gate.set()
    assert written.wait(30)
    assert upload.answer() is not None
    assert sum(taken) == rows * 1024 + rows * 8
    assert max(taken) <= MAX_CHUNK_BYTES


@pytest.mark.parametrize(("beside", "mebibytes", "same_thread"), [(False, 1, True), (True, 1, False), (False, 3, False)])
def test_an_upload_without_a_network_goes_out_on_the_computing_thread_if_its_window_holds_it(
    beside: bool, mebibytes: int, same_thread: bool
) -> None:
    network, threads = FlakyNetwork([]), []

    def send(request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        threads.append(threading.get_ident())
        return network.send(request, chunks)

    rows = mebibytes * MAX_CHUNK_BYTES // 1024
    alone, together = (
        Upload(_request(rows), each, clock=MonotonicClock(), window_bytes=2 * MAX_CHUNK_BYTES, beside=how)
        for each, how in ((send, beside), (network.send, True))
    )
    for upload in (alone, together):
        _stream(3, rows)(upload)
        assert upload.answer() is not None
    assert threads == [threading.get_ident()] or not same_thread
    assert (threading.get_ident() in threads) is same_thread
    assert network.payloads[0] == network.payloads[1]


def test_a_stream_that_fails_releases_the_writer() -> None:
    def refuse(request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        raise TransportError("no route")

    rows = 8 * MAX_CHUNK_BYTES // 1024
    upload = Upload(_request(rows), refuse, clock=MonotonicClock(), window_bytes=MAX_CHUNK_BYTES)
    _stream(3, rows)(upload)
    with pytest.raises(TransportError, match="no route"):
        upload.answer()


def test_chunks_hold_whole_rows() -> None:
    sizes: list[int] = []

    def record(request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        sizes.extend(len(chunk[1]) for chunk in chunks if chunk and chunk[0] == 0)
        return UploadAnswer(0, probe_losses=(), losses=())

    spec = TensorSpec("activations", DType.FLOAT32, (700, 1000))
    request = UploadRequest(
        RoundReference(0, 0), UploadPurpose.TRAIN, local_step=0, num_probes=0, tensors=(spec, TensorSpec("labels", DType.INT64, (700,)))
    )
    upload = Upload(request, record, clock=MonotonicClock())
    upload.write(0, raw_bytes(np.zeros((700, 1000), np.float32)))
    upload.finish()
    upload.answer()
    assert sum(sizes) == spec.size_bytes
    assert all(size % 4000 == 0 for size in sizes)
    assert len(sizes) > 1


def test_giving_up_raises_the_last_error() -> None:
    network = FlakyNetwork([TransportError("cut")] * 100_000)
    pipeline = _pipeline(network.send, give_up_after_seconds=0.05)
    pipeline.send(_request(), _stream(1))
    with pytest.raises(TransportError, match="cut"):
        pipeline.settle()
    assert network.calls > 1


def test_a_repeat_that_is_refused_at_its_header_stops_computing() -> None:
    refused = threading.Event()

    def refuse(request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        refused.set()
        raise RefusedError(ErrorCode.TOO_FAR_AHEAD, "later", 0.001)

    upload = Upload(_request(), refuse, clock=MonotonicClock(), repeats=True)
    with pytest.raises(RefusedError):
        upload.answer()
    with pytest.raises(StreamEnded):
        _stream(1)(upload)
    first = Upload(_request(), refuse, clock=MonotonicClock())
    with pytest.raises(RefusedError):
        first.answer()
    assert _stream(1)(first).shape == (4,)


def test_an_aborted_upload_tells_the_transport_to_give_up() -> None:
    seen: list[Chunk] = []
    ended = threading.Event()

    def collect(request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        seen.extend(chunks)
        ended.set()
        return UploadAnswer(0, probe_losses=(), losses=())

    upload = Upload(_request(), collect, clock=MonotonicClock())
    upload.abort()
    eventually(ended.is_set, 10, "the end of the upload thread")
    assert seen == [None]


def test_abort_ends_the_thread() -> None:
    ended = threading.Event()

    def drain(request: UploadRequest, chunks: Chunks) -> UploadAnswer:
        for _ in chunks:
            pass
        ended.set()
        return UploadAnswer(0, probe_losses=(), losses=())

    upload = Upload(_request(), drain, clock=MonotonicClock())
    upload.abort()
    eventually(ended.is_set, 10, "the end of the upload thread")


@pytest.mark.parametrize("row_elements", [256, 30_000, 100_000, 300_000])
def test_buffers_that_go_round_never_mix_rows_and_chunks_hold_whole_rows_where_they_fit(row_elements: int) -> None:
    rows = 40
    tensors = (TensorSpec("activations", DType.FLOAT32, (rows, row_elements)), TensorSpec("labels", DType.INT64, (rows,)))
    request = UploadRequest(RoundReference(0, 0), UploadPurpose.TRAIN, local_step=0, num_probes=0, tensors=tensors)
    kept: list[tuple[int, bytes]] = []

    def send(_: UploadRequest, chunks: Chunks) -> UploadAnswer:
        kept.extend(chunk for chunk in chunks if chunk is not None)
        return UploadAnswer(0, probe_losses=(), losses=())

    upload = Upload(request, send, clock=MonotonicClock(), window_bytes=MAX_CHUNK_BYTES)
    values = np.arange(rows * row_elements, dtype=np.float32).reshape(rows, row_elements)
    scratch = np.empty_like(values[:1])
    for row in values:
        scratch[:] = row
        upload.write(0, raw_bytes(scratch))
        scratch[:] = -1
    upload.write(1, raw_bytes(np.arange(rows)))
    upload.finish()
    upload.answer()
    assert b"".join(data for index, data in kept if index == 0) == values.tobytes()
    assert b"".join(data for index, data in kept if index == 1) == np.arange(rows).tobytes()
    sizes = [len(data) for index, data in kept if index == 0]
    if 4 * row_elements <= MAX_CHUNK_BYTES:
        assert all(size % (4 * row_elements) == 0 for size in sizes)
        assert max(sizes) <= max(USUAL_CHUNK_BYTES, 4 * row_elements)


def test_who_waits_for_its_next_attempt_makes_it_once_the_server_was_heard_of_again() -> None:
    """A pause that began while the server was away would keep the round waiting for as long as it had grown."""
    policy = RetryPolicy(threading.Event(), MonotonicClock(), Random(0), backoff=BackoffPolicy(initial_seconds=3600.0, cap_seconds=3600.0))
    attempts, waiting = policy.begin("upload a step"), threading.Event()

    def wait() -> None:
        waiting.set()
        attempts.wait(RefusedError(ErrorCode.SPOOL_FULL, "later", 3600.0))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(20)
    # Woken again and again: a wake before the wait begins is not one of this wait.
    eventually(lambda: (policy.wake(), not thread.is_alive())[1], what="the wait to end")
