"""Compare a client's data with a run's specification before it trains; says what differs."""

from __future__ import annotations

import numpy as np

from heron_common.assignment import DataSpecification
from heron_common.data.sources import DataSource
from heron_common.errors import DataError

_ROWS_AT_ONCE = 1024


def check_source(source: DataSource, specification: DataSpecification) -> None:
    """Check shape and every label of the shard; samples are checked by value as they are uploaded.

    Raises:
        DataError: the shape of a sample or a label is not what the run expects.

    """
    if source.input_shape != specification.input_shape:
        raise DataError(
            f"the run expects samples of shape {list(specification.input_shape)} ({specification.name}), "
            f"but {source.name!r} has {list(source.input_shape)}: choose other data or another --data-spec on the server"
        )
    for start in range(0, source.num_examples, _ROWS_AT_ONCE):
        labels = source.labels.read(source.rows[start : start + _ROWS_AT_ONCE])
        bad = labels[(labels < 0) | (labels >= specification.num_classes)]
        if bad.size:
            raise DataError(
                f"the run expects labels from 0 to {specification.num_classes - 1}, but {source.name!r} has {int(np.ravel(bad)[0])}: fix the labels or the server's --data-spec"
            )
