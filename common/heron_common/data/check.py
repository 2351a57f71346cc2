"""Compare a client's data with a run's specification before it trains; says what differs."""

from __future__ import annotations

import numpy as np

from heron_common.assignment import DataSpecification, Task
from heron_common.data.reading import SampleReader
from heron_common.data.sources import DataSource

_ROWS_AT_ONCE = 1024


def check_source(source: DataSource, specification: DataSpecification, tokenizer: bytes | None = None) -> SampleReader:
    """Return a reader of the shard once its form and every label are checked; samples are checked by value as they are read.

    Raises:
        DataError: the form of a sample or a label is not what the run expects.
        ConfigurationError: a library that this source needs is not installed.

    """
    reader = SampleReader(source, specification, tokenizer)
    if specification.task is Task.NEXT_TOKEN:
        # What follows a token is in the text itself: a look at the first sample shows whether it can be read at all.
        reader.labels(np.arange(1))
        return reader
    for start in range(0, reader.num_examples, _ROWS_AT_ONCE):
        reader.labels(np.arange(start, min(start + _ROWS_AT_ONCE, reader.num_examples)))
    return reader
