"""The rules by which a server may combine its clients' weights; a plan names one, heron_server.training.aggregation has the arithmetic."""

from __future__ import annotations

from enum import StrEnum


class AggregationRule(StrEnum):
    """How clients' weights become one; all but MEAN bound what a minority of clients can do, and how small a minority depends on N.

    MEAN is weighted and any single client moves it anywhere. NORM_CLIPPED_MEAN is weighted too; the other three count all clients alike.
    TRIMMED_MEAN drops nobody below five clients; MULTI_KRUM is the median there.
    """

    MEAN = "mean"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed_mean"
    NORM_CLIPPED_MEAN = "norm_clipped_mean"
    MULTI_KRUM = "multi_krum"
