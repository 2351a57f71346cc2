"""How many copies of its trained weights a client holds: the two buffers, in a fetch as in a round, and a third only where passes go on beside an upload."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from heron_client.network.downloads import MemoryDownload
from heron_client.network.transport import Transport
from heron_client.network.upload import Chunk, UploadRequest
from heron_client.training.local_training import LocalContext, LocalRound
from heron_client.training.parameters import LocalParameters, SentFront
from heron_client.training.programs import Programs
from heron_common.errors import TransportError
from heron_common.numerics.tensors import DType, TensorSpec, raw_bytes
from heron_common.process.clock import ManualClock
from heron_common.protocol.messages import Assignment, UploadAnswer
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramKind
from heron_proto.v1 import split_training_pb2 as pb
from tests.client.models import TinyModel
from tests.client.rounds import BLOB, ROUND, Network, pipeline_to, run_round, small_plan

NUM_WEIGHTS = 4_000_000


class NothingToCompute:
    """Stands where a program would and takes no memory."""

    kind, micro_batch = ProgramKind.LOSS, 2
    activations, losses = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    new_statistics = np.zeros(0, np.float32)

    def __init__(self, working: Any) -> None:
        self._working = working

    def run(self, *_: Any) -> None:
        self.losses[:] = self._working[0, :2]


def _allocated_at_peak(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _wide_parameters(tiny: TinyModel) -> tuple[ModelSpec, LocalParameters]:
    front = (TensorSpec("w", DType.FLOAT32, (NUM_WEIGHTS,)),)
    spec = dataclasses.replace(tiny.model.to_spec(), client_model=front, auxiliary_head=(), cut=TensorSpec("cut", DType.FLOAT32, (1,)))
    return spec, LocalParameters(spec)


@pytest.mark.parametrize("interval", [1, 2])
def test_a_zeroth_order_round_copies_no_weights(tiny: TinyModel, interval: int) -> None:
    spec, parameters = _wide_parameters(tiny)
    parameters.theta[:] = 0.1
    plan = small_plan("heron", local_steps=4, upload_interval=interval)
    x, y = np.zeros((40, 1, 6, 6), np.float32), np.zeros(40, np.int64)
    program: Any = NothingToCompute(parameters.working)
    programs = Programs([tiny.reference(ProgramKind.LOSS)], lambda _: program)
    context = LocalContext(
        "a",
        1,
        model=spec,
        parameters=parameters,
        programs=programs,
        read_batch=lambda rows, _: (x[rows], y[rows]),
        num_examples=40,
        clock=ManualClock(),
    )

    def send(_request: UploadRequest, chunks: Iterator[Chunk]) -> UploadAnswer:
        for _ in chunks:
            pass
        return UploadAnswer(0, probe_losses=(), losses=(), cut_gradient=b"")

    sender = pipeline_to(send)
    local_round = LocalRound(
        context,
        Assignment(ROUND, plan, client_model=BLOB, auxiliary_head=BLOB, direction_scales=(10.0,), second_moment=0.0),
        sender=sender,
        on_step=lambda *_: None,
    )

    def work() -> None:
        for step in range(plan.local_steps):
            local_round.run_step(step)
            # With an answer there is nothing to compute again.
            while not sender.answered:
                threading.Event().wait(0.001)
        local_round.finish()
        local_round.submission()

    peak = _allocated_at_peak(work)
    assert not np.all(parameters.theta == np.float32(0.1))
    assert peak < parameters.theta.nbytes / 3


def test_weights_are_fetched_into_their_buffer_without_a_copy_beside_it() -> None:
    wanted = np.random.default_rng(0).standard_normal(NUM_WEIGHTS).astype(np.float32)
    content = wanted.tobytes()
    blob = BlobReference(hashlib.sha256(content).hexdigest(), len(content))
    buffer = np.zeros(NUM_WEIGHTS, np.float32)

    class Stub:
        def FetchBlob(self, _request: pb.FetchBlobRequest, timeout: float) -> Any:
            return Call()

    class Call:
        def __iter__(self) -> Iterator[pb.FetchBlobResponse]:
            return (pb.FetchBlobResponse(data=content[at : at + (256 << 10)]) for at in range(0, len(content), 256 << 10))

        def cancel(self) -> None: ...

    transport = Transport("nowhere", count_bytes=lambda *_: None, count_refusal=lambda _: None, connect=lambda: (Stub(), lambda: None))
    peak = _allocated_at_peak(lambda: transport.fetch(MemoryDownload(blob, raw_bytes(buffer)), "weights"))
    assert buffer.tobytes() == content and peak < buffer.nbytes / 8


@pytest.mark.parametrize("preset", ["heron", "heron-paper", "cse-fsl"])
@pytest.mark.parametrize("failures", [1, 2])
def test_an_upload_that_fails_while_later_steps_compute_is_sent_again_from_its_own_front(
    tiny: TinyModel, preset: str, failures: int
) -> None:
    plan = small_plan(preset, upload_interval=3, local_steps=5)
    theta, smooth = tiny.random_weights(8), Network()
    rough = Network(failures=[TransportError("cut")] * failures)
    undisturbed, disturbed = run_round(tiny, plan, smooth, theta), run_round(tiny, plan, rough, theta)
    assert len(smooth.uploads) == 2 and rough.broken == [smooth.uploads[0][1]] * failures
    assert [payload for _, payload in rough.uploads] == [payload for _, payload in smooth.uploads]
    assert disturbed.theta.tobytes() == undisturbed.theta.tobytes() != theta.tobytes()


def test_a_sent_front_outlives_steps_and_passes(tiny: TinyModel) -> None:
    parameters = LocalParameters(tiny.model.to_spec())
    parameters.theta[:] = tiny.random_weights(1)
    sent, first = SentFront(parameters), parameters.front.copy()
    front = parameters.working[0, : first.size]
    sent.begin()
    for _ in range(3):
        sent.show()
        np.testing.assert_array_equal(front, first)
        sent.before_passes()
        parameters.working[:] = 7
        sent.before_move()
        parameters.theta += 1
    sent.begin()
    sent.show()
    np.testing.assert_array_equal(front, parameters.front)
