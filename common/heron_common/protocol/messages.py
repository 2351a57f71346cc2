"""What the two sides tell each other, as domain values without a trace of protobuf."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy.typing as npt

from heron_common.algorithm.plan import Plan, UpdateEncoding
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import TensorSpec
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramReference


@dataclass(frozen=True)
class Membership:
    """What a client learns by joining; `base` holds the tensors of `model.base`, if there are any; `held_out` see `heron_common.data.shard_split`.

    Those who only check are told the plan of a round and the server's clock, in seconds since the epoch; 0 where it does not say.
    """

    run_id: str
    session: str
    _: KW_ONLY
    run_seed: int
    data_specification: DataSpecification
    model: ModelSpec
    programs: tuple[ProgramReference, ...]
    heartbeat_seconds: float
    num_rounds: int
    base: BlobReference | None = None
    held_out: float = 0.0
    evaluation_batches: int = 0
    plan: Plan | None = None
    server_time_seconds: float = 0.0

    @property
    def directions_per_run(self) -> int:
        """The most trained weights of their own that a run of one of the programs takes."""
        return max((program.directions for program in self.programs), default=1)


@dataclass(frozen=True)
class Assignment:
    """Train this round, this attempt, with this plan, these weights and, where the model has them, these running statistics."""

    round: RoundReference
    plan: Plan
    _: KW_ONLY
    client_model: BlobReference
    auxiliary_head: BlobReference | None
    direction_scales: tuple[float, ...]
    second_moment: float
    derivative_quantile: float = 0.0
    statistics: BlobReference | None = None


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
    """TRAIN: the server trains on the activations. PROBE: it first judges them and their perturbed copies by one frozen version.

    EVALUATE: it scores them and never trains on them; `local_step` is then the number of the batch of held-out samples.
    """

    TRAIN = "train"
    PROBE = "probe"
    EVALUATE = "evaluate"


EVALUATION_KIND = "evaluation"
"""Under which the bytes of uploads of purpose EVALUATE are counted, whatever their tensor."""


@dataclass(frozen=True)
class UploadKey:
    """The idempotency key of an upload within a run."""

    round: RoundReference
    client_id: str
    _: KW_ONLY
    purpose: UploadPurpose
    local_step: int


@dataclass(frozen=True)
class UploadLoss:
    """The server's loss on one upload, and the number of server steps before it."""

    round: RoundReference
    local_step: int
    _: KW_ONLY
    server_loss: float
    server_version: int


@dataclass(frozen=True)
class UploadAnswer:
    """The answer to an upload: scalars, and lambda in the plans that need it. `probe_losses` is [1 + num_probes, batch_size] row by row, or empty.

    `cut_gradient` holds the encoded rows of `cut_gradient_specs`; empty where the plan asks for none.
    """

    server_version: int
    _: KW_ONLY
    probe_losses: tuple[float, ...]
    losses: tuple[UploadLoss, ...]
    cut_gradient: bytes | bytearray = b""


class PeakMemory(NamedTuple):
    """What a client's process held at most; zeros where nobody knows."""

    resident_bytes: int = 0
    """VmHWM: the whole process, and as many pages of its libraries as this kernel happened to map."""
    anonymous_bytes: int = 0
    """Of its own, which every machine needs; seen at the end of programs."""


@dataclass(frozen=True, kw_only=True)
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
    peak_anonymous_bytes: int = 0

    @property
    def peak_memory(self) -> PeakMemory:
        """The two figures of memory."""
        return PeakMemory(self.peak_memory_bytes, self.peak_anonymous_bytes)


@dataclass(frozen=True)
class Submission:
    """What a client made of a round: `tensors` with their arrays, and the digest of its resulting trained weights, which covers no statistics."""

    encoding: UpdateEncoding
    _: KW_ONLY
    tensors: tuple[TensorSpec, ...]
    arrays: tuple[npt.NDArray[Any], ...]
    weights_sha256: bytes
