"""What a round brought, in log and metrics, and what would make the next one better."""

from __future__ import annotations

import functools
import logging
from collections import deque

from heron_client.metrics import ClientMetrics
from heron_common.data.reading import SampleReader
from heron_common.data.tally import FAR_FROM_NORMAL
from heron_common.process.clock import Clock
from heron_common.protocol.messages import Assignment, LocalStatistics, UploadLoss
from heron_common.terminal.figures import human_bytes, human_number, human_seconds
from heron_common.terminal.log_setup import TOLD

log = logging.getLogger(__name__)

_LATELY = 10
"""Rounds by which the time is judged that is left."""


class RoundReport:
    """Reports the rounds of one client."""

    def __init__(self, metrics: ClientMetrics, clock: Clock, *, waits_for_network: bool) -> None:
        """Where many clients share a process they wait for each other, not for a network: nothing is said of waits then."""
        self._metrics = metrics
        self._clock = clock
        self._boundaries: deque[tuple[int, float]] = deque(maxlen=_LATELY)
        """Before which round the run stood, and when."""
        self._waits_for_network = waits_for_network
        self._warned_of_truncation = self._told_of_data = False

    def losses(self, losses: tuple[UploadLoss, ...]) -> None:
        """Note the server's losses on uploads."""
        if losses:
            self._metrics.server_loss.set(losses[-1].server_loss)

    def round_started(self, assignment: Assignment) -> None:
        """Note a round that begins."""
        self._metrics.round_started(assignment)
        if not self._boundaries:
            self._boundaries.append((assignment.round.round_index, self._clock.now()))

    def round_done(self, assignment: Assignment, statistics: LocalStatistics, *, reader: SampleReader, num_rounds: int) -> None:
        """Report a round whose update was accepted."""
        self._metrics.round_done(statistics)
        left = self._seconds_left(assignment.round.round_index + 1, num_rounds)
        self._metrics.time_left = human_seconds(left)
        log.info(
            "round done",
            extra={
                "round_index": assignment.round.round_index,
                "local_loss": statistics.mean_local_loss,
                "wait_seconds": statistics.upload_wait_seconds,
                "peak_memory_mb": round(statistics.peak_memory_bytes / 1e6, 1),
                "peak_anonymous_mb": round(statistics.peak_anonymous_bytes / 1e6, 1),
                "seconds_left": left,
                TOLD: _told(assignment, statistics, num_rounds=num_rounds, left=human_seconds(left)),
            },
        )
        if statistics.diverged:
            log.warning(
                "this round diverged: a loss or gradient was not finite, so the last good weights were kept; "
                "whoever runs the server should know, for its steps are too long"
            )
        if not self._told_of_data:
            self._told_of_data = True
            log.info("the data of the first round", extra=reader.seen.fields())
            if reader.seen.is_far_from_normal:
                warn_of_values()
        self._truncation(reader)
        slow = statistics.upload_wait_seconds > max(1.0, 0.5 * statistics.step_seconds)
        if slow and self._waits_for_network and not assignment.plan.waits_for_answers:
            log.warning(
                "most of the round went into waiting for uploads: the network is slower than this device; whoever runs the server can have less sent"
            )

    def _seconds_left(self, completed: int, num_rounds: int) -> float:
        """Return how long the rest of the run takes if it goes on as it did lately, rounds without this client included."""
        now = self._clock.now()
        before, since = self._boundaries[0]
        self._boundaries.append((completed, now))
        return (now - since) / max(1, completed - before) * max(0, num_rounds - completed)

    def _truncation(self, reader: SampleReader) -> None:
        if not reader.truncated:
            return
        self._metrics.texts_truncated.set(reader.truncated)
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            log.warning(
                "texts were longer than the run takes and were cut off; --check-data counts them, and whoever runs the server can have longer ones taken",
                extra={"texts": reader.truncated, "of": reader.num_examples},
            )


@functools.cache
def warn_of_values() -> None:
    """Say once in a process, however many clients it has, that numbers are of another scale than models learn from."""
    log.warning(FAR_FROM_NORMAL)


def _told(assignment: Assignment, statistics: LocalStatistics, *, num_rounds: int, left: str) -> str:
    """Return a round's line for people; where the front rests there is no local loss."""
    completed = assignment.round.round_index + 1
    figures = [
        f"local loss {human_number(statistics.mean_local_loss)}" if assignment.plan.trains_front else "",
        f"waited {human_seconds(statistics.upload_wait_seconds)} for the server",
        f"peak memory {human_bytes(statistics.peak_memory_bytes)}" if statistics.peak_memory_bytes else "",
    ]
    rest = f", {left} left" if completed < num_rounds else ""
    return f"round {completed} of {num_rounds} done{rest}: {', '.join(filter(None, figures))}"
