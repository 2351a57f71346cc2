"""What a round brought, in log and metrics, and what would make the next one better."""

from __future__ import annotations

import logging

from heron_client.metrics import ClientMetrics
from heron_common.data.reading import SampleReader
from heron_common.protocol.messages import Assignment, LocalStatistics, UploadLoss

log = logging.getLogger(__name__)


class RoundReport:
    """Reports the rounds of one client."""

    def __init__(self, metrics: ClientMetrics, *, waits_for_network: bool) -> None:
        """Where many clients share a process they wait for each other, not for a network: nothing is said of waits then."""
        self._metrics = metrics
        self._waits_for_network = waits_for_network
        self._warned_of_truncation = False

    def losses(self, losses: tuple[UploadLoss, ...]) -> None:
        """Note the server's losses on uploads."""
        if losses:
            self._metrics.server_loss.set(losses[-1].server_loss)

    def round_done(self, assignment: Assignment, statistics: LocalStatistics, reader: SampleReader) -> None:
        """Report a round whose update was accepted."""
        self._metrics.round_done(statistics)
        log.info(
            "round done",
            extra={
                "round_index": assignment.round.round_index,
                "local_loss": statistics.mean_local_loss,
                "wait_seconds": statistics.upload_wait_seconds,
                "peak_memory_mb": round(statistics.peak_memory_bytes / 1e6, 1),
                "peak_anonymous_mb": round(statistics.peak_anonymous_bytes / 1e6, 1),
            },
        )
        if statistics.diverged:
            log.warning(
                "this round diverged: a loss or gradient was not finite, so the last good weights were kept; "
                f"lower {assignment.plan.step_option} on the server"
            )
        self._truncation(reader)
        slow = statistics.upload_wait_seconds > max(1.0, 0.5 * statistics.step_seconds)
        if slow and self._waits_for_network and not assignment.plan.waits_for_answers:
            log.warning(
                "most of the round went into waiting for uploads: raise --upload-interval, choose a smaller --wire-dtype, or cut where activations are smaller"
            )

    def _truncation(self, reader: SampleReader) -> None:
        if not reader.truncated:
            return
        self._metrics.texts_truncated.set(reader.truncated)
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            log.warning(
                "texts were longer than the run takes and were cut off: raise the (last) LENGTH in --data-spec on the server, or see --check-data",
                extra={"texts": reader.truncated, "of": reader.num_examples},
            )
