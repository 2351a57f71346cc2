"""What the server tells a client, as domain values without a trace of protobuf."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy.typing as npt

from heron_common.algorithm.plan import Objective, Plan, UpdateEncoding
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import DType, TensorSpec

MAX_LENGTHS = 32
"""Lengths of text in one run: each has programs of its own."""

MAX_COLUMNS = 1 << 16
"""Names of a sample's numbers."""


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
    """A program to fetch; one run of it takes `micro_batch` samples, where texts have several lengths those of `length`, else 0."""

    kind: ProgramKind
    blob: BlobReference
    micro_batch: int
    length: int = 0


CLASS_LABEL = TensorSpec("labels", DType.INT64, ())
"""The label of a sample that belongs to one of several classes."""


@dataclass(frozen=True)
class ModelSpec:
    """Tensors of the client's part in flat-buffer order, one sample at the cut layer, and what is frozen.

    Attributes:
        client_model: trained tensors of the front.
        auxiliary_head: trained tensors of the head.
        cut: activations of one sample.
        labels: label of one sample.
        context: what the back needs of a sample beside its activations and travels with them: the mask of tokens.
        base: frozen tensors of front and head in the order of the base's blob; int8 ones are followed there by a float32 scale per row.
        statistics: running statistics of front and head that training moves but no step does, in the order of their flat buffer: named `front.` and
            then `head.` with the layer's own name. Where there are any, samples are normalised by their batch, which programs then take whole.
        lengths: those that texts are padded to, ascending; cut, labels and context are of the last. Empty where all samples have one shape.

    """

    client_model: tuple[TensorSpec, ...]
    auxiliary_head: tuple[TensorSpec, ...]
    cut: TensorSpec
    labels: TensorSpec = CLASS_LABEL
    context: tuple[TensorSpec, ...] = ()
    base: tuple[TensorSpec, ...] = ()
    statistics: tuple[TensorSpec, ...] = ()
    lengths: tuple[int, ...] = ()

    def statistics_read(self, with_head: bool) -> tuple[TensorSpec, ...]:
        """Return the statistics that a program of the front, or of front and head, moves: a prefix of all."""
        return tuple(spec for spec in self.statistics if with_head or spec.name.startswith(FRONT_STATISTICS))


FRONT_STATISTICS, HEAD_STATISTICS = "front.", "head."
"""How the names of running statistics begin."""


class Task(StrEnum):
    """What the model is asked for.

    CLASSIFICATION: one of `num_classes`. REGRESSION: `num_classes` numbers. NEXT_TOKEN: at each place the token that follows, of a vocabulary of `num_classes`.
    """

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    NEXT_TOKEN = "next_token"


PADDING = -1
"""Stands in a sequence where there is no token."""

IGNORED = -100
"""Stands in a sequence of next tokens where none is asked for: behind the end, and within a prompt."""


@dataclass(frozen=True)
class DataSpecification:
    """What the model expects of data.

    Attributes:
        name: for people.
        input_shape: of one sample; for text its length in tokens.
        num_classes: classes, or outputs of a regression, or tokens of the vocabulary.
        mean, standard_deviation: raw numbers are read as (raw - mean) / standard_deviation.
        channel_means, channel_deviations: the same for each index of a sample's first dimension; empty if all share `mean` and `standard_deviation`.
        task: what is asked for.
        tokens: whether a sample is a sequence of token ids, PADDING where it is shorter than `input_shape`.
        class_names: in the order of their numbers; empty if classes have none.
        tokenizer: turns text into tokens; None where samples are no text.
        refuses_overlong: whether text longer than `input_shape` is refused; else it is cut off and counted.
        lengths: those that texts are padded to, each text to the smallest that holds it, ascending, the last that of `input_shape`; empty where
            there is only that.
        columns: names of a sample's numbers, in their order; empty if they have none.

    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    mean: float = 0.0
    standard_deviation: float = 1.0
    task: Task = Task.CLASSIFICATION
    tokens: bool = False
    class_names: tuple[str, ...] = ()
    channel_means: tuple[float, ...] = ()
    channel_deviations: tuple[float, ...] = ()
    tokenizer: BlobReference | None = None
    refuses_overlong: bool = False
    lengths: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def labels(self) -> TensorSpec:
        """One sample's label: a class, numbers, or a token for each place."""
        if self.task is Task.REGRESSION:
            return TensorSpec("labels", DType.FLOAT32, (self.num_classes,))
        return TensorSpec("labels", DType.INT64, self.input_shape) if self.task is Task.NEXT_TOKEN else CLASS_LABEL


@dataclass(frozen=True)
class Membership:
    """What a client learns by joining; `base` holds the tensors of `model.base`, if there are any; `held_out` see `heron_common.data.held_out`.

    Those who only check are told the plan of a round and the server's clock, in seconds since the epoch; 0 where it does not say.
    """

    run_id: str
    session: str
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


@dataclass(frozen=True)
class Assignment:
    """Train this round, this attempt, with this plan, these weights and, where the model has them, these running statistics."""

    round: RoundReference
    plan: Plan
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
    """What a client made of a round: `tensors` with their arrays, and the digest of its resulting trained weights, which covers no statistics."""

    encoding: UpdateEncoding
    tensors: tuple[TensorSpec, ...]
    arrays: tuple[npt.NDArray[Any], ...]
    weights_sha256: bytes


def upload_specs(plan: Plan, model: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors of one upload: activations of the base and each probe in the wire dtype, labels, and what goes with them.

    An upload is of one length: where texts have several, `model` is the one `of_length` (`heron_common.specification.text_lengths`).
    """
    activations = TensorSpec("activations", DType(plan.wire_dtype.value), (plan.batch_size * (1 + plan.num_probes), *model.cut.shape))
    beside = tuple(TensorSpec(spec.name, spec.dtype, (plan.batch_size, *spec.shape)) for spec in (model.labels, *model.context))
    return (activations, *beside)


def evaluation_specs(plan: Plan, model: ModelSpec, rows: int) -> tuple[TensorSpec, ...]:
    """Return the tensors of an upload of `rows` held-out samples: those of a training upload, without probes."""
    return upload_specs(replace(plan, objective=Objective.NONE, batch_size=rows), model)


def cut_gradient_specs(plan: Plan, model: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors that answer an upload: lambda, the gradient of each sample's loss at the cut, in the wire dtype; none in most plans."""
    if not plan.needs_cut_gradient:
        return ()
    return (TensorSpec("cut_gradient", DType(plan.wire_dtype.value), (plan.batch_size, *model.cut.shape)),)


def update_specs(plan: Plan, model: ModelSpec, encoding: UpdateEncoding | None = None) -> tuple[TensorSpec, ...]:
    """Return the tensors of an update in the plan's encoding or another: those of `weight_specs`, then the running statistics where the model has them.

    None if nothing was trained and no statistics moved.
    """
    size = sum(t.num_elements for t in model.statistics)
    statistics = (TensorSpec("statistics", DType.FLOAT32, (size,)),) if size else ()
    return (*weight_specs(plan, model, encoding), *statistics)


def weight_specs(plan: Plan, model: ModelSpec, encoding: UpdateEncoding | None = None) -> tuple[TensorSpec, ...]:
    """Return what an update says of the weights: a log's coefficients, or the flat front and, if the client trains it, the head; nothing if none moved."""
    if not plan.trains_front:
        return ()
    if (encoding or plan.update_encoding) is UpdateEncoding.LOG:
        directions = plan.direction_groups * plan.num_directions
        return (TensorSpec("coefficients", DType.FLOAT64, (plan.local_steps, directions)),)
    flat = [TensorSpec("client_model", DType.FLOAT32, (sum(t.num_elements for t in model.client_model),))]
    if plan.trains_head:
        flat.append(TensorSpec("auxiliary_head", DType.FLOAT32, (sum(t.num_elements for t in model.auxiliary_head),)))
    return tuple(flat)
