"""What a closed round tells: its figures as metrics and as one line of the log."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from heron_common.terminal.figures import human_number, human_seconds, human_share
from heron_common.terminal.log_setup import TOLD
from heron_server.metrics import ServerMetrics
from heron_server.rounds.jobs import CloseJob
from heron_server.summary import RoundRecord, seconds_left, time_left
from heron_server.training.evaluation import Evaluation

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

CHANCE_ROUNDS = 3
"""So many rounds in a row at chance are no accident of one."""


def is_back_at_chance(rounds: Sequence[RoundRecord], num_classes: int) -> bool:
    """Return whether the server's loss has just been at chance, ln(classes), for CHANCE_ROUNDS rounds after it was below 0.7 of that.

    A front that its steps destroyed stays finite, and no later round brings it back: nothing else would say so.
    """
    losses = [record.server_loss for record in rounds if record.server_loss is not None]
    chance = math.log(num_classes)
    at_chance = [loss >= 0.98 * chance for loss in losses[-CHANCE_ROUNDS - 1 :]]
    return at_chance[1:] == [True] * CHANCE_ROUNDS and not at_chance[0] and min(losses) < 0.7 * chance


def warn_at_chance(rounds: Sequence[RoundRecord], num_classes: int) -> None:
    """Log, once each time, that a run has unlearnt what it knew."""
    if is_back_at_chance(rounds, num_classes):
        log.warning(
            "the loss is back at chance: the front's steps have probably destroyed it; begin again with a lower --relative-step or --client-learning-rate, "
            "or go on from an older checkpoint",
            extra={"round_index": rounds[-1].round_index, "server_loss": rounds[-1].server_loss},
        )


def round_record(
    job: CloseJob, score: Evaluation | None, *, server_losses: Sequence[float], seconds: float, measured: dict[str, Any]
) -> RoundRecord:
    """Return the record of a round that was closed; `measured` are fields that others summed up."""
    statistics = [update.statistics for update in job.updates]
    return RoundRecord(
        round_index=job.round.round_index,
        attempt=job.round.attempt,
        cohort=len(job.cohort),
        updates=len(job.updates),
        test_accuracy=score.accuracy if score else None,
        test_loss=score.loss if score else None,
        test_perplexity=score.perplexity if score else None,
        local_loss=float(np.median([s.mean_local_loss for s in statistics])) if job.plan.trains_front else None,
        server_loss=float(np.mean(server_losses)) if server_losses else None,
        client_forward_passes=sum(s.forward_passes for s in statistics),
        client_forward_equivalents=sum(s.forward_equivalents for s in statistics),
        seconds=seconds,
        **measured,
    )


def report_round(metrics: ServerMetrics, job: CloseJob, *, rounds: Sequence[RoundRecord], num_rounds: int) -> None:
    """Set the metrics of the round that was closed last, and log its line."""
    record = rounds[-1]
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
        metrics.difference_mean.set(float(np.median([s.difference_mean for s in statistics])))
        metrics.difference_variance.set(float(np.median([s.difference_variance for s in statistics])))
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
            "seconds_left": seconds_left(rounds, num_rounds),
            TOLD: _told(record, time_left(rounds, num_rounds), num_rounds),
        },
    )


def _told(record: RoundRecord, left: str, num_rounds: int) -> str:
    """Return a round's line for people."""
    scores = [
        f"test accuracy {human_share(record.test_accuracy)}" if record.test_accuracy is not None else "",
        f"test perplexity {human_number(record.test_perplexity)}" if record.test_perplexity is not None else "",
        *(f"{name} {value}" for name, value in record.federated_figures()[:1]),
        f"server loss {human_number(record.server_loss)}" if record.server_loss is not None else "",
        f"{record.updates} of {record.cohort} updates",
    ]
    rest = f", {left} left" if record.round_index + 1 < num_rounds else ""
    return f"round {record.round_index + 1} of {num_rounds} took {human_seconds(record.seconds)}{rest}: {', '.join(filter(None, scores))}"
