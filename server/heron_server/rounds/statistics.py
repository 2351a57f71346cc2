"""What clients say about themselves, checked before anything is made of it."""

from __future__ import annotations

import dataclasses
import math

from heron_common.assignment import LocalStatistics
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError


def check_statistics(statistics: LocalStatistics) -> None:
    """Refuse statistics that cannot be: RefusedError NON_FINITE."""
    values = dataclasses.asdict(statistics)
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise RefusedError(ErrorCode.NON_FINITE, f"the statistic {bad[0]!r} must be finite, but {values[bad[0]]} came: sit this round out")
