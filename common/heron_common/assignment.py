"""What the server tells a client, as domain values without a trace of protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy.typing as npt

from heron_common.ids import RoundReference
from heron_common.plan import Plan, UpdateEncoding
from heron_common.tensors import DType, TensorSpec


@dataclass(frozen=True)
class BlobReference:
    """A content-addressed blob: SHA-256 in lower-case hexadecimal and size."""

    sha256: str
    size_bytes: int


MAX_PROGRAM_BYTES = 4 << 20
"""A program holds no weights, so four mebibytes is generous; a server publishes no larger one and a client runs none."""


class ProgramKind(StrEnum):
    """What a program computes; lambda is the gradient of each sample's server loss at the cut.

    LOSS: theta_c, theta_a, x, y -> z, per-sample local loss. FRONT: theta_c, x -> z.
    GRADIENT: theta_c, theta_a, x, y -> z, per-sample local loss, gradients of the losses' sum. SURROGATE: theta_c, x, lambda -> z, per-sample <lambda, z>.
    PULLBACK: theta_c, x, lambda -> gradients of the sum of <lambda, z>.
    """

    LOSS = "loss"
    FRONT = "front"
    GRADIENT = "gradient"
    SURROGATE = "surrogate"
    PULLBACK = "pullback"


@dataclass(frozen=True)
class ProgramReference:
    """A program to fetch; one run of it takes `micro_batch` samples."""

    kind: ProgramKind
    blob: BlobReference
    micro_batch: int


@dataclass(frozen=True)
class ModelSpec:
    """Tensors of the client's part in flat-buffer order, and one sample's activations at the cut layer."""

    client_model: tuple[TensorSpec, ...]
    auxiliary_head: tuple[TensorSpec, ...]
    cut: TensorSpec


@dataclass(frozen=True)
class DataSpecification:
    """What the model expects of data: raw values are read as (raw - mean) / standard_deviation; labels lie in [0, num_classes)."""

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    mean: float = 0.0
    standard_deviation: float = 1.0


@dataclass(frozen=True)
class Membership:
    """What a client learns by joining."""

    run_id: str
    session: str
    run_seed: int
    data_specification: DataSpecification
    model: ModelSpec
    programs: tuple[ProgramReference, ...]
    heartbeat_seconds: float
    num_rounds: int


@dataclass(frozen=True)
class Assignment:
    """Train this round, this attempt, with this plan and these weights."""

    round: RoundReference
    plan: Plan
    client_model: BlobReference
    auxiliary_head: BlobReference | None
    direction_scales: tuple[float, ...]
    second_moment: float
    derivative_quantile: float = 0.0


@dataclass(frozen=True)
class Wait:
    """Nothing to do: ask again in `seconds`."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Finished:
    """The run is over."""

    reason: str


NextStep = Assignment | Wait | Finished


class UploadPurpose(StrEnum):
    """TRAIN: the server trains on the activations. PROBE: it first judges them and their perturbed copies by one frozen version."""

    TRAIN = "train"
    PROBE = "probe"


@dataclass(frozen=True)
class UploadKey:
    """The idempotency key of an upload within a run."""

    round: RoundReference
    client_id: str
    purpose: UploadPurpose
    local_step: int


@dataclass(frozen=True)
class UploadLoss:
    """The server's loss on one upload, and the number of server steps before it."""

    round: RoundReference
    local_step: int
    server_loss: float
    server_version: int


@dataclass(frozen=True)
class UploadAnswer:
    """The answer to an upload: scalars, and lambda in the plans that need it. `probe_losses` is [1 + num_probes, batch_size] row by row, or empty.

    `cut_gradient` holds the encoded rows of `cut_gradient_specs`; empty where the plan asks for none.
    """

    server_version: int
    probe_losses: tuple[float, ...]
    losses: tuple[UploadLoss, ...]
    cut_gradient: bytes | bytearray = b""


@dataclass(frozen=True)
class LocalStatistics:
    """What a client measured in its round; reported, never trusted for weighting."""

    second_moment: float = 0.0
    mean_local_loss: float = 0.0
    forward_passes: int = 0
    differences: int = 0
    difference_mean: float = 0.0
    difference_variance: float = 0.0
    differences_clipped: int = 0
    differences_non_finite: int = 0
    step_seconds: float = 0.0
    upload_wait_seconds: float = 0.0
    peak_memory_bytes: int = 0
    derivative_quantile: float = 0.0
    steps_skipped: int = 0
    diverged: bool = False
    forward_equivalents: float = 0.0


@dataclass(frozen=True)
class Submission:
    """What a client made of a round: `tensors` with their arrays, and the digest of its resulting trained weights."""

    encoding: UpdateEncoding
    tensors: tuple[TensorSpec, ...]
    arrays: tuple[npt.NDArray[Any], ...]
    weights_sha256: bytes


def upload_specs(plan: Plan, model: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors of one upload: activations of the base and each probe in the wire dtype, then labels."""
    activations = TensorSpec("activations", DType(plan.wire_dtype.value), (plan.batch_size * (1 + plan.num_probes), *model.cut.shape))
    return (activations, TensorSpec("labels", DType.INT64, (plan.batch_size,)))


def cut_gradient_specs(plan: Plan, model: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors that answer an upload: lambda, the gradient of each sample's loss at the cut, in the wire dtype; none in most plans."""
    if not plan.needs_cut_gradient:
        return ()
    return (TensorSpec("cut_gradient", DType(plan.wire_dtype.value), (plan.batch_size, *model.cut.shape)),)


def update_specs(plan: Plan, model: ModelSpec, encoding: UpdateEncoding | None = None) -> tuple[TensorSpec, ...]:
    """Return the tensors of an update in the plan's encoding or another: a log's coefficients, or the flat front and, if the client trains it, the head.

    None if nothing was trained.
    """
    if not plan.trains_front:
        return ()
    if (encoding or plan.update_encoding) is UpdateEncoding.LOG:
        directions = plan.direction_groups * plan.num_directions
        return (TensorSpec("coefficients", DType.FLOAT64, (plan.local_steps, directions)),)
    flat = [TensorSpec("client_model", DType.FLOAT32, (sum(t.num_elements for t in model.client_model),))]
    if plan.trains_head:
        flat.append(TensorSpec("auxiliary_head", DType.FLOAT32, (sum(t.num_elements for t in model.auxiliary_head),)))
    return tuple(flat)
