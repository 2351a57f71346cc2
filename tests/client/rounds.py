"""A client's round in this process: real programs over a tiny model, a network that the test answers for."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np

from heron_client.network.retry_policy import RetryPolicy
from heron_client.network.upload import DEFAULT_WINDOW_BYTES, Chunk, SendUpload, UploadRequest
from heron_client.network.upload_pipeline import UploadPipeline
from heron_client.training.local_training import LocalContext, LocalRound
from heron_client.training.parameters import LocalParameters
from heron_client.training.programs import Programs
from heron_client.training.round_meter import RoundMeter
from heron_common.algorithm.plan import Plan
from heron_common.algorithm.presets import PRESETS
from heron_common.algorithm.trained_tensors import perturbed_tensors
from heron_common.data.partition import SampleOrder
from heron_common.errors import HeronError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import Float32Array, Int64Array
from heron_common.numerics.wire_dtypes import WireDtype, encode_rows
from heron_common.process.clock import ManualClock
from heron_common.process.retry import BackoffPolicy
from heron_common.protocol.messages import Assignment, UploadAnswer
from heron_common.specification.model_spec import BlobReference, ProgramKind
from heron_server.programs.publish import needed_programs
from tests.client.models import TinyModel

ROUND = RoundReference(3, 1)
RUN_SEED = 9
SCALE = 0.5
NUM_EXAMPLES = 40
QUICK = BackoffPolicy(initial_seconds=0.001, cap_seconds=0.002, floor_seconds=0.0005)
BLOB = BlobReference("0" * 64, 0)

Answer = Callable[[UploadRequest, list[bytes]], Any]
Wrap = Callable[[ProgramKind, Any], Any]


class Network:
    """Collects uploads; answers probes with losses, and uploads with lambda, that the test computes; fails as scripted before it does."""

    def __init__(self, judge: Answer | None = None, cut_gradient: Answer | None = None, failures: list[HeronError] | None = None) -> None:
        self.uploads: list[tuple[UploadRequest, list[bytes]]] = []
        self.broken: list[list[bytes]] = []
        self.bytes_down = 0
        self._judge = judge
        self._cut_gradient = cut_gradient
        self._failures = failures or []

    def send(self, request: UploadRequest, chunks: Iterator[Chunk]) -> UploadAnswer:
        payload = [b""] * len(request.tensors)
        for chunk in chunks:
            if chunk is not None:
                payload[chunk[0]] += chunk[1]
        if self._failures:
            self.broken.append(payload)
            raise self._failures.pop(0)
        self.uploads.append((request, payload))
        judged = tuple(float(v) for v in self._judge(request, payload)) if self._judge else ()
        gradient = b""
        if self._cut_gradient:
            (spec,) = request.answer_tensors
            gradient = bytes(encode_rows(self._cut_gradient(request, payload), WireDtype(spec.dtype.value), noise_seed=None, first_row=0))
        self.bytes_down += len(gradient)
        return UploadAnswer(0, probe_losses=judged, losses=(), cut_gradient=gradient)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A round that ran: what it reports and submits, and the weights at which it arrived."""

    round: LocalRound
    parameters: LocalParameters

    @property
    def theta(self) -> Float32Array:
        return self.parameters.theta

    @property
    def meter(self) -> RoundMeter:
        return self.round.meter


def small_plan(preset: str = "heron", **changes: Any) -> Plan:
    """Return a preset's plan over three steps of twelve samples, in three groups where it perturbs and leaves them open."""
    base = PRESETS[preset].plan
    groups = base.direction_groups or 3
    small = dataclasses.replace(base, batch_size=12, direction_groups=groups, micro_batch=2, local_steps=3, smoothing_radius=1e-2)
    return dataclasses.replace(small, **changes)


def samples() -> tuple[Float32Array, Int64Array]:
    """Return the client's shard."""
    return np.random.default_rng(7).standard_normal((NUM_EXAMPLES, 1, 6, 6)).astype(np.float32), np.arange(NUM_EXAMPLES) % 3


def batch(plan: Plan, local_step: int, client_id: str = "a") -> tuple[Float32Array, Int64Array]:
    """Return the samples of one step."""
    data, labels = samples()
    rows = SampleOrder(RUN_SEED, client_id, round_reference=ROUND, num_examples=NUM_EXAMPLES, batch_size=plan.batch_size).indices(
        local_step
    )
    return data[rows], labels[rows]


def pipeline_to(send: SendUpload, window_bytes: int = DEFAULT_WINDOW_BYTES) -> UploadPipeline:
    """Return what sends a round's uploads to a network that is not there."""
    policy = RetryPolicy(threading.Event(), ManualClock(), Random(0), backoff=QUICK)
    return UploadPipeline(
        send, policy, clock=ManualClock(), round_over=threading.Event(), on_answer=lambda _: None, window_bytes=window_bytes
    )


def run_round(
    tiny: TinyModel,
    plan: Plan,
    network: Network,
    theta: Float32Array,
    *,
    client_id: str = "a",
    reference: RoundReference = ROUND,
    scales: tuple[float, ...] | None = None,
    wrap: Wrap = lambda _, program: program,
    statistics: Float32Array | None = None,
    after_step: Callable[[LocalParameters], None] = lambda _: None,
) -> Finished:
    """Run every step of the round with the programs that a server would publish for the plan; `wrap` may put something between them and the round."""
    spec = tiny.model.to_spec()
    at_once = plan.directions_per_run
    parameters = LocalParameters(spec, at_once)
    parameters.theta[:] = theta
    if statistics is not None:
        parameters.statistics[:] = statistics
    data, labels = samples()
    kinds = needed_programs(dataclasses.replace(PRESETS["heron"], plan=plan, warmup_rounds=0))
    references = [tiny.reference(kind, at_once if kind is plan.judged_program else 1) for kind in kinds]
    programs = Programs(references, lambda r: wrap(r.kind, tiny.load(r.kind, parameters, directions=r.directions)))
    context = LocalContext(
        client_id,
        RUN_SEED,
        model=spec,
        parameters=parameters,
        programs=programs,
        read_batch=lambda i, _: (data[i], labels[i]),
        num_examples=NUM_EXAMPLES,
        clock=ManualClock(),
    )
    scales = scales or (SCALE,) * len(perturbed_tensors(plan, spec))
    local_round = LocalRound(
        context,
        Assignment(reference, plan, client_model=BLOB, auxiliary_head=BLOB, direction_scales=scales, second_moment=0.0),
        sender=pipeline_to(network.send),
        on_step=lambda *_: None,
    )
    for step in range(plan.local_steps):
        local_round.run_step(step)
        after_step(parameters)
    local_round.finish()
    return Finished(local_round, parameters)
