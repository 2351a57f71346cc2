"""The client's Prometheus metrics: `heron_client_` prefix, base units, no client name in a label."""

from __future__ import annotations

import math
import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from heron_common.process.metrics_server import ProcessMemoryCollector
from heron_common.protocol.messages import Assignment, LocalStatistics

PHASES = ("new", "joined", "training", "left")
_STATUS = {"new": "connecting", "joined": "asking for work", "training": "training", "left": "left"}
"""What a console says of a phase until somebody knows better."""

_STEP_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class ClientMetrics:
    """All metrics of one client on one registry, and the few figures that its console shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self.bytes_by_direction = {"up": 0, "down": 0}
        self.round_label, self.step_label, self.status = "-", "-", "connecting"
        self.time_left = "-"
        self.local_loss_value = math.nan
        self._round = Gauge("heron_client_round", "Round that this client is at work on.", registry=registry)
        self._phase = Gauge("heron_client_phase", "1 for the phase that the client is in.", ["phase"], registry=registry)
        self._bytes = Counter("heron_client_bytes", "Bytes by direction and kind.", ["direction", "kind"], registry=registry)
        self._step_seconds = Histogram(
            "heron_client_local_step_seconds", "Duration of a local step, waits included.", buckets=_STEP_BUCKETS, registry=registry
        )
        self._upload_wait = Counter("heron_client_upload_wait_seconds", "Seconds that training waited for uploads.", registry=registry)
        self._local_loss = Gauge("heron_client_local_loss", "Mean loss of the latest local step.", registry=registry)
        self.server_loss = Gauge("heron_client_server_loss", "The server's loss on this client's latest trained upload.", registry=registry)
        self._difference_mean = Gauge("heron_client_difference_mean", "Mean directional derivative of the latest round.", registry=registry)
        self._difference_variance = Gauge(
            "heron_client_difference_variance", "Variance of the directional derivatives of the latest round.", registry=registry
        )
        self._clipped = Counter("heron_client_differences_clipped", "Directional derivatives that were clipped.", registry=registry)
        self._non_finite = Counter(
            "heron_client_differences_non_finite", "Directional derivatives that were NaN or infinite.", registry=registry
        )
        self._rounds = Counter("heron_client_rounds_completed", "Rounds whose update was accepted.", registry=registry)
        self.texts_truncated = Gauge(
            "heron_client_texts_truncated", "Texts read so far that were longer than the run takes.", registry=registry
        )
        self.uploads_answered = Counter("heron_client_uploads_answered", "Uploads that the server answered.", registry=registry)
        self.reconnects = Counter("heron_client_reconnects", "Times this client had to join again.", registry=registry)
        self.rejections = Counter("heron_client_rejections", "Requests that the server refused, by reason.", ["reason"], registry=registry)
        registry.register(ProcessMemoryCollector("heron_client"))
        self.phase("new")

    def count_bytes(self, direction: str, kind: str, count: int) -> None:
        """Count bytes in a direction, "up" or "down", by kind."""
        self._bytes.labels(direction=direction, kind=kind).inc(count)
        with self._lock:
            self.bytes_by_direction[direction] += count

    def phase(self, name: str) -> None:
        """Set the phase."""
        self.status = _STATUS[name]
        for phase in PHASES:
            self._phase.labels(phase=phase).set(1 if phase == name else 0)

    def round_started(self, assignment: Assignment) -> None:
        """Note the round that begins."""
        self._round.set(assignment.round.round_index)
        self.round_label = str(assignment.round.round_index + 1)

    def step_done(self, local_step: int, local_loss: float, seconds: float) -> None:
        """Note a finished local step."""
        self._step_seconds.observe(seconds)
        self.step_label = str(local_step + 1)
        if not math.isnan(local_loss):
            self._local_loss.set(local_loss)
            self.local_loss_value = local_loss

    def round_done(self, statistics: LocalStatistics) -> None:
        """Note a finished round."""
        self._rounds.inc()
        self._upload_wait.inc(statistics.upload_wait_seconds)
        self._difference_mean.set(statistics.difference_mean)
        self._difference_variance.set(statistics.difference_variance)
        self._clipped.inc(statistics.differences_clipped)
        self._non_finite.inc(statistics.differences_non_finite)
