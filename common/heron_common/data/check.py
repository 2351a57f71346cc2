"""Compare data with a run's specification before it trains; says what differs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

import numpy as np

from heron_common.data.columns import with_columns
from heron_common.data.image_files import ImageRows
from heron_common.data.reading import SampleReader
from heron_common.data.rows import StringRows
from heron_common.data.sources import DataSource
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import DataSpecification, Task

log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1024
_SAMPLES_AT_ONCE = 256


def check_source(source: DataSource, specification: DataSpecification, tokenizer: bytes | None = None) -> SampleReader:
    """Return a reader of the shard once its form and every label are checked; samples are checked by value as they are read.

    Raises:
        DataError: the form of a sample or a label is not what the run expects, a file is no image, or a text holds what is none.
        ConfigurationError: a library that this source needs is not installed.

    """
    reader = SampleReader(source, specification, tokenizer)
    rows, inputs = reader.source.rows, reader.source.inputs
    if isinstance(inputs, ImageRows):
        inputs.check(rows)
    if (
        isinstance(inputs, StringRows)
        and inputs.is_rest
        and len(inputs.columns) > 1
        and not (specification.tokens or with_columns(specification, inputs).columns)
    ):
        _warn_of_nameless_columns(source.name)
    if isinstance(inputs, StringRows) and not inputs.is_checked:
        for indices in _pieces(reader.num_examples, _ROWS_AT_ONCE):
            inputs.read(rows[indices])
    if specification.task is Task.NEXT_TOKEN:
        # What follows a token is in the text itself: a look at the first sample shows whether it can be read at all.
        reader.labels(np.arange(1))
        return reader
    for indices in _pieces(reader.num_examples, _ROWS_AT_ONCE):
        reader.labels(indices)
    return reader


def check_samples(source: DataSource, specification: DataSpecification, tokenizer: bytes | None = None) -> SampleReader:
    """Do the same, and read every sample once: for those who would meet a bad one after hours, and have the time to look before.

    Raises:
        DataError, ConfigurationError: see `check_source`; or a sample is not what the run expects.

    """
    reader = check_source(source, specification, tokenizer)
    for indices in _pieces(reader.num_examples, _SAMPLES_AT_ONCE):
        reader.batch(indices)
    return reader


@functools.cache
def _warn_of_nameless_columns(source_name: str) -> None:
    """Say once in a process, however often it joins and with however many clients, that nobody compares the order of columns."""
    log.warning(
        "the run has no names for its columns and these cannot become its own, so * takes them as they stand: compare their order on every device, "
        "or name them in the server's --data-spec, like a+b:2",
        extra={"source": source_name},
    )


def _pieces(count: int, size: int) -> Iterator[Int64Array]:
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))
