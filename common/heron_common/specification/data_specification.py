"""What a run expects of data: values."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum

from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.specification.model_spec import CLASS_LABEL, BlobReference

MAX_LENGTHS = 32
"""Lengths of text in one run: each has programs of its own."""


MAX_COLUMNS = 1 << 16
"""Names of a sample's numbers."""


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
        columns_of_client: whether it was a client that named them, and not who runs the server: then other names are refused.

    """

    name: str
    input_shape: tuple[int, ...]
    _: KW_ONLY
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
    columns_of_client: bool = False

    @property
    def labels(self) -> TensorSpec:
        """One sample's label: a class, numbers, or a token for each place."""
        if self.task is Task.REGRESSION:
            return TensorSpec("labels", DType.FLOAT32, (self.num_classes,))
        return TensorSpec("labels", DType.INT64, self.input_shape) if self.task is Task.NEXT_TOKEN else CLASS_LABEL
