"""Data sources by name, like `digits:train` or `npz:PATH`. What they hold is raw; `SampleReader` makes of it what a run expects."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np

from heron_common.data.cifar import open_cifar_10
from heron_common.data.columns import in_order_of, order_in_words
from heron_common.data.csv_rows import CSV_USAGE, open_csv
from heron_common.data.digits import open_digits
from heron_common.data.fashion_mnist import open_fashion_mnist
from heron_common.data.idx import open_idx
from heron_common.data.image_files import ImageFiles
from heron_common.data.image_folder import IMAGE_FOLDER_USAGE, open_image_folder
from heron_common.data.jsonl_rows import JSONL_USAGE, open_jsonl
from heron_common.data.left_out import LeftOut
from heron_common.data.npz import open_npz
from heron_common.data.partition import Partition, Shard, partition_rows
from heron_common.data.python_source import PYTHON_USAGE, open_python
from heron_common.data.rows import RowReader, StringRows

# Where they are is no concern of those who open sources.
from heron_common.data.specification import SPECIFICATIONS as SPECIFICATIONS
from heron_common.data.specification import parse_specification as parse_specification
from heron_common.data.text_files import TEXT_USAGE, TextFiles, open_text
from heron_common.data.tokeniser import Tokeniser
from heron_common.errors import ConfigurationError, DataError
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import DataSpecification

log = logging.getLogger(__name__)

HANDED_OVER = "object:"
"""How names of data begin that a Python program handed over: they say in a run's record which these were, and nobody else can open them."""

_LABELS_AT_ONCE = 4096


@dataclass(frozen=True)
class DataSource:
    """Samples and labels behind row readers, restricted to `rows`.

    `divisions` are the parts that were asked of a source whose samples are not counted yet; they are taken when it is fitted.
    """

    name: str
    _: KW_ONLY
    inputs: RowReader
    labels: RowReader
    rows: Int64Array
    divisions: tuple[tuple[Partition, Shard], ...] = ()

    @property
    def num_examples(self) -> int:
        """How many samples this source (or shard of it) has; 0 if they are not counted yet."""
        return len(self.rows)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.inputs.shape[1:]

    @property
    def is_counted(self) -> bool:
        """Whether the samples are known already; those of running text are once it is cut for a run."""
        return not isinstance(self.inputs, TextFiles)

    @property
    def left_out(self) -> LeftOut | None:
        """Files of a folder that are not read; None where samples are no files of a folder."""
        return self.inputs.left_out if isinstance(self.inputs, TextFiles | ImageFiles) else None

    def restricted(self, rows: Int64Array) -> DataSource:
        """Return the same source with only some of its rows."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def read_labels(self) -> Int64Array:
        """Return every label as a number; a few are read at a time. Names are numbered in their sorted order.

        Raises:
            DataError: there are no labels, or they are no classes.

        """
        pieces = []
        for start in range(0, self.num_examples, _LABELS_AT_ONCE):
            piece = self.labels.read(self.rows[start : start + _LABELS_AT_ONCE])
            if piece.dtype.kind not in "iubO" or piece.size != len(piece):
                raise DataError(
                    f"a partition by label needs a class for each sample, but {self.name!r} has other labels: use iid or sizes:ALPHA"
                )
            pieces.append(piece.reshape(-1))
        labels = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
        if labels.dtype.kind == "O":
            labels = np.unique(labels.astype(str), return_inverse=True)[1]
        return labels.astype(np.int64)

    def shard(self, partition: Partition, shard: Shard) -> DataSource:
        """Return one client's part; labels are read only if the partition depends on them.

        Raises:
            DataError: there are too few samples for so many clients, or no labels to go by.

        """
        if not self.is_counted:
            if partition.uses_labels:
                self.labels.read(self.rows)
            return dataclasses.replace(self, divisions=(*self.divisions, (partition, shard)))
        labels = self.read_labels() if partition.uses_labels else np.zeros(self.num_examples, np.int64)
        return self.restricted(partition_rows(labels, partition, shard))

    def fitted(self, specification: DataSpecification, tokeniser: Tokeniser | None) -> DataSource:
        """Return the source with samples in the form of a run, where they have none before.

        Raises:
            DataError: they cannot have that form, are too few for the parts that were asked for, or * stands for other columns than the run's.

        """
        if isinstance(self.inputs, StringRows):
            return dataclasses.replace(self, inputs=in_order_of(specification, self.inputs, self.name))
        if not isinstance(self.inputs, TextFiles | ImageFiles):
            return self
        inputs = self.inputs.fitted(specification, tokeniser)
        if self.is_counted:
            return dataclasses.replace(self, inputs=inputs)
        source = DataSource(self.name, inputs=inputs, labels=self.labels, rows=np.arange(inputs.shape[0], dtype=np.int64))
        for partition, shard in self.divisions:
            source = source.shard(partition, shard)
        return source


SOURCES: dict[str, tuple[str, Callable[[str], tuple[RowReader, RowReader]]]] = {
    "digits": ("digits:train or digits:test", open_digits),
    "npz": ("npz:PATH (an uncompressed .npz with arrays 'x' and, unless the next token is predicted, 'y')", open_npz),
    "fashion-mnist": (
        "fashion-mnist:train or fashion-mnist:test (Debian's dataset-fashion-mnist, or :FOLDER behind it)",
        open_fashion_mnist,
    ),
    "cifar-10": ("cifar-10:train:FOLDER or cifar-10:test:FOLDER (as published, binary or python)", open_cifar_10),
    "idx": ("idx:FOLDER:train or idx:FOLDER:test (MNIST's file format, plain or .gz)", open_idx),
    "csv": (CSV_USAGE, open_csv),
    "jsonl": (JSONL_USAGE, open_jsonl),
    "text": (TEXT_USAGE, open_text),
    "image-folder": (IMAGE_FOLDER_USAGE, open_image_folder),
    "python": (PYTHON_USAGE, open_python),
}
"""Of each kind how it is written, and what opens it: the argument behind the kind becomes readers of samples and labels."""


def source_names() -> list[str]:
    """Return how each kind of source is written."""
    return [usage for usage, _ in SOURCES.values()]


def source_kind(name: str) -> str:
    """Return the kind of a source by its name, without opening it.

    Raises:
        ConfigurationError: there is no such kind; the message lists those that exist.

    """
    kind = name.partition(":")[0]
    if name.startswith(HANDED_OVER):
        return kind
    if kind not in SOURCES:
        raise ConfigurationError(f"unknown data source {name!r}: write one of {'; '.join(source_names())}")
    return kind


def open_source(name: str) -> DataSource:
    """Open a source by name, `kind:argument`.

    Raises:
        ConfigurationError: there is no such kind; the message lists those that exist.
        DataError: the source is not there or not in the expected form.

    """
    if name.startswith(HANDED_OVER):
        raise ConfigurationError(f"the data {name!r} were handed over as objects from Python: hand them over again, or name a data source")
    inputs, labels = SOURCES[source_kind(name)][1](name.partition(":")[2])
    return source_of(name, inputs, labels)


def source_of(name: str, inputs: RowReader, labels: RowReader) -> DataSource:
    """Return all rows of two readers as a source.

    Raises:
        DataError: they have not the same number of rows, or none.

    """
    source = DataSource(name, inputs=inputs, labels=labels, rows=np.arange(inputs.shape[0], dtype=np.int64))
    if inputs.shape[0] != labels.shape[0]:
        raise DataError(f"data source {name!r} has {inputs.shape[0]} samples but {labels.shape[0]} labels: they must match")
    if inputs.shape[0] == 0 and source.is_counted:
        raise DataError(f"data source {name!r} is empty: at least one sample is needed")
    _say_what_is_read(source)
    return source


def _say_what_is_read(source: DataSource) -> None:
    """Log what nobody wrote down: the columns that * stands for, and files of a folder that are left out."""
    if isinstance(source.inputs, StringRows) and source.inputs.is_rest:
        log.info("* stands for these columns, in this order", extra={"source": source.name, "columns": order_in_words(source.inputs)})
    if source.left_out is not None and source.left_out.sentence:
        level = logging.INFO if source.left_out.is_expected else logging.WARNING
        # In the sentence, not beside it: `heron evaluate` has no log that would show what stands beside.
        log.log(level, f"files of the folder are left out: {source.left_out.sentence}", extra={"source": source.name})
