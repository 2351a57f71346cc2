"""What a model is made of on the client's side, and the programs that run it: values."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum

from heron_common.numerics.tensors import DType, TensorSpec


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
    """A program to fetch; one run of it takes `micro_batch` samples, where texts have several lengths those of `length`, else 0.

    With `directions` above 1 these are so many equal groups, and each group is run with trained weights of its own: the rows of one input.
    """

    kind: ProgramKind
    blob: BlobReference
    _: KW_ONLY
    micro_batch: int
    length: int = 0
    directions: int = 1


WEIGHTS_BY_DIRECTION = "weights"
"""The input of a program that takes several directions: [directions, trained weights of front and head], one flat buffer a row."""

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
        without_gradient: so many tensors at the front's beginning move by differences while those behind them move by gradients, so that no program
            computes gradients of theirs. 0 where one estimator moves all.

    """

    client_model: tuple[TensorSpec, ...]
    auxiliary_head: tuple[TensorSpec, ...]
    _: KW_ONLY
    cut: TensorSpec
    labels: TensorSpec = CLASS_LABEL
    context: tuple[TensorSpec, ...] = ()
    base: tuple[TensorSpec, ...] = ()
    statistics: tuple[TensorSpec, ...] = ()
    lengths: tuple[int, ...] = ()
    without_gradient: int = 0

    def statistics_read(self, with_head: bool) -> tuple[TensorSpec, ...]:
        """Return the statistics that a program of the front, or of front and head, moves: a prefix of all."""
        return tuple(spec for spec in self.statistics if with_head or spec.name.startswith(FRONT_STATISTICS))


FRONT_STATISTICS, HEAD_STATISTICS = "front.", "head."
"""How the names of running statistics begin."""
