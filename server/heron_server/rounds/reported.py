"""What clients say of their own round: refused where it cannot be, and combined so that one of them moves little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import num_parameters
from heron_common.protocol.messages import LocalStatistics
from heron_common.protocol.reported_ranges import out_of_range
from heron_common.specification.model_spec import ModelSpec
from heron_server.storage.spool import SpoolEntry

MOST_CHANGE = {"second_moment": 100.0, "derivative_quantile": 10.0}
"""A running figure grows or shrinks by at most this in a round: its clients' own have a memory of fifty steps. The one is of squares of the other."""


def check_reported(statistics: LocalStatistics) -> None:
    """Raise RefusedError NON_FINITE if a statistic cannot be."""
    wrong = out_of_range(statistics)
    if wrong:
        raise RefusedError(ErrorCode.NON_FINITE, f"{wrong}: sit this round out")


def check_variances(entry: SpoolEntry | None, model: ModelSpec) -> None:
    """Raise RefusedError NON_FINITE if a running variance at the end of an update's payload is negative; evaluation takes its root."""
    if entry is None or not model.statistics:
        return
    flat, start = np.frombuffer(entry.read()[-4 * num_parameters(model.statistics) :], "<f4"), 0
    for spec in model.statistics:
        values, start = flat[start : start + spec.num_elements], start + spec.num_elements
        if spec.name.endswith("running_var") and values.size and float(values.min()) < 0:
            raise RefusedError(
                ErrorCode.NON_FINITE,
                f"the running variance {spec.name!r} was expected to be 0 or more, but {float(values.min()):g} came: sit this round out",
            )


def combined(name: str, reported: Sequence[float], last: float) -> float:
    """Return a running figure for the next round: the median of the clients', not further from the last one than MOST_CHANGE.

    What is 0 is unknown and does not count; where less than half of them know anything the last one stands. Of an even number the middle two are averaged if they agree within
    MOST_CHANGE; else one of them is no measurement, and the lower is taken: too large a figure would stop all fronts, too small a one is bounded by their step rule.
    """
    most = MOST_CHANGE[name]
    known = sorted(value for value in reported if value > 0)
    if not known or 2 * len(known) < len(reported):
        return last
    low, high = known[(len(known) - 1) // 2], known[len(known) // 2]
    figure = low / 2 + high / 2 if high <= most * low else low
    return min(max(figure, last / most), last * most) if last > 0 else figure
