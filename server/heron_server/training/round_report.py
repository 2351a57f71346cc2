"""What a closed round tells: its figures as metrics and as one line of the log."""

from __future__ import annotations

import logging

import numpy as np

from heron_server.metrics import ServerMetrics
from heron_server.rounds.jobs import CloseJob
from heron_server.summary import RoundRecord

log = logging.getLogger(__name__)

_FIGURES = (
    "test_accuracy",
    "test_loss",
    "test_perplexity",
    "server_loss",
    "federated_accuracy",
    "federated_loss",
    "federated_perplexity",
)


def report_round(metrics: ServerMetrics, job: CloseJob, record: RoundRecord) -> None:
    """Set the metrics of a round that was closed, and log its line."""
    statistics = [update.statistics for update in job.updates]
    metrics.rounds_completed.inc()
    metrics.round_seconds.observe(record.seconds)
    if record.test_accuracy is not None:
        metrics.evaluation_accuracy.set(record.test_accuracy)
    if record.test_loss is not None:
        metrics.evaluation_loss.set(record.test_loss)
    if record.test_perplexity is not None:
        metrics.evaluation_perplexity.set(record.test_perplexity)
    if record.federated_accuracy is not None:
        metrics.federated_accuracy.set(record.federated_accuracy)
    if record.federated_loss is not None:
        metrics.federated_loss.set(record.federated_loss)
    if record.federated_perplexity is not None:
        metrics.federated_perplexity.set(record.federated_perplexity)
    if record.local_loss is not None:
        metrics.local_loss.set(record.local_loss)
        metrics.difference_mean.set(float(np.mean([s.difference_mean for s in statistics])))
        metrics.difference_variance.set(float(np.mean([s.difference_variance for s in statistics])))
    metrics.differences_clipped.inc(sum(s.differences_clipped for s in statistics))
    metrics.differences_non_finite.inc(sum(s.differences_non_finite for s in statistics))
    figures = {name: getattr(record, name) for name in _FIGURES}
    log.info(
        "round closed",
        extra={
            "round_index": record.round_index,
            "updates": record.updates,
            **{name: value for name, value in figures.items() if value is not None},
            "seconds": record.seconds,
        },
    )
