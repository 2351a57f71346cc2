"""Passes hold one micro-batch of activations, never a batch, whatever goes up, comes down or adds up (invariant 20)."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from heron_client.network.upload import Chunk, UploadRequest
from heron_client.training.local_training import LocalContext, LocalRound
from heron_client.training.parameters import LocalParameters
from heron_client.training.programs import Programs
from heron_common.algorithm.payload_shapes import cut_gradient_specs
from heron_common.algorithm.plan import Plan, UpdateEncoding
from heron_common.algorithm.presets import PRESETS
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import DType, TensorSpec, total_bytes
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.process.clock import ManualClock
from heron_common.protocol.chunks import MAX_CHUNK_BYTES
from heron_common.protocol.messages import Assignment, UploadAnswer
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramKind, ProgramReference
from tests.client.rounds import pipeline_to

CUT = (64, 1024)
"""A quarter of a mebibyte a sample in float32."""
BATCH_SIZE = 64
MODEL = ModelSpec(
    (TensorSpec("w", DType.FLOAT32, (6,)),), (TensorSpec("h", DType.FLOAT32, (3,)),), cut=TensorSpec("cut", DType.FLOAT32, CUT)
)
BLOB = BlobReference("0" * 64, 0)
ROW_BYTES = 4 * CUT[0] * CUT[1]


class Stand:
    """In place of a program: outputs of the right shapes, values without meaning, buffers made once as the real ones' are."""

    def __init__(self, kind: ProgramKind, micro_batch: int) -> None:
        self.kind, self.micro_batch = kind, micro_batch
        self.activations = np.ones((micro_batch, *CUT), np.float32)
        self.losses = self.inner_products = np.ones(micro_batch, np.float32)
        self.gradients = np.ones(9 if kind is ProgramKind.GRADIENT else 6, np.float32)
        self.new_statistics = np.zeros(0, np.float32)

    def run(self, x: Any, y: Any, cut_gradient: Any = None) -> None:
        assert cut_gradient is None or cut_gradient.shape == self.activations.shape


class Drain:
    """A network that reads and forgets; its answers were made before anybody measures."""

    def __init__(self, plan: Plan, answer_bytes: int) -> None:
        self.bytes_up = 0
        self._losses = tuple(1.0 + 0.01 * i for i in range((1 + plan.num_probes) * plan.batch_size)) if plan.num_probes else ()
        self._answer = bytes(answer_bytes)

    def send(self, request: UploadRequest, chunks: Iterator[Chunk]) -> UploadAnswer:
        for chunk in chunks:
            self.bytes_up += len(chunk[1]) if chunk else 0
        return UploadAnswer(0, probe_losses=self._losses, losses=(), cut_gradient=self._answer)


def peak_of(call: Callable[[], object]) -> int:
    """Return the bytes that numpy and Python allocated at most, beyond those there were."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def round_of(plan: Plan) -> tuple[LocalRound, Drain]:
    parameters = LocalParameters(MODEL)
    x, y = np.zeros((BATCH_SIZE, 2), np.float32), np.zeros(BATCH_SIZE, np.int64)
    references = [ProgramReference(kind, BLOB, micro_batch=plan.micro_batch) for kind in ProgramKind]
    load: Any = lambda reference: Stand(reference.kind, plan.micro_batch)  # noqa: E731
    context = LocalContext(
        "a",
        1,
        model=MODEL,
        parameters=parameters,
        programs=Programs(references, load),
        read_batch=lambda *_: (x, y),
        num_examples=BATCH_SIZE,
        clock=ManualClock(),
    )
    tensors = parameters.trained_layout(plan.trains_head).specs
    network = Drain(plan, total_bytes(cut_gradient_specs(plan, MODEL)))
    assignment = Assignment(
        RoundReference(0, 0), plan, client_model=BLOB, auxiliary_head=BLOB, direction_scales=(1.0,) * len(tensors), second_moment=0.0
    )
    return LocalRound(context, assignment, sender=pipeline_to(network.send, MAX_CHUNK_BYTES), on_step=lambda *_: None), network


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in PRESETS),
    ("heron", {"num_directions": 2}),
    ("heron", {"difference": FiniteDifference.CENTRAL}),
    ("ho-sfl", {"difference": FiniteDifference.FORWARD}),
    *(("heron", {"wire_dtype": dtype}) for dtype in (WireDtype.FLOAT16, WireDtype.BFLOAT16, WireDtype.INT8)),
    *((name, {"wire_dtype": dtype}) for name in ("ho-sfl", "sflv2") for dtype in (WireDtype.FLOAT16, WireDtype.INT8)),
]


@pytest.mark.invariant(20)
@pytest.mark.parametrize(("preset", "changes"), CASES, ids=["-".join([n, *map(str, c.values())]) for n, c in CASES])
def test_a_step_never_holds_the_activations_of_a_whole_batch(preset: str, changes: dict[str, Any]) -> None:
    row = PRESETS[preset].plan
    plan = dataclasses.replace(
        row,
        batch_size=BATCH_SIZE,
        micro_batch=1,
        local_steps=1,
        direction_groups=row.direction_groups or 4,
        update_encoding=UpdateEncoding.DENSE,
        **changes,
    )
    local_round, network = round_of(plan)
    whole = BATCH_SIZE * ROW_BYTES

    def step() -> None:
        local_round.run_step(0)
        local_round.finish()

    peak = peak_of(step)
    assert network.bytes_up > whole / 5
    # The window, the chunk being filled and the one being sent; and a few rows in float32 while one is encoded or decoded.
    assert peak < 3 * MAX_CHUNK_BYTES + 8 * ROW_BYTES
    assert peak < whole / 3


def test_the_measure_sees_a_whole_batch() -> None:
    assert peak_of(lambda: np.zeros((BATCH_SIZE, *CUT), np.float32)) >= BATCH_SIZE * ROW_BYTES
