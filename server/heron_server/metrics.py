"""The server's Prometheus metrics: `heron_server_` prefix, base units, no client name in a label."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from heron_common.process.metrics_server import ProcessMemoryCollector

PHASES = ("waiting", "training", "closing", "finished", "draining")
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class _Made:
    """Makes metrics of a server on a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"heron_server_{name}", text, buckets=_SECONDS, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"heron_server_{name}", text, labels, registry=self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"heron_server_{name}", text, labels, registry=self._registry)


class _RoundMetrics(_Made):
    """Of rounds and who is in them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        gauge, counter = self._gauge, self._counter
        self._phase = gauge("phase", "1 for the phase that the run is in.", ("phase",))
        self.round = gauge("round", "Round that is open or will open next.")
        self.planned_rounds = gauge("planned_rounds", "Rounds that the run is to have.")
        self.rounds_completed = counter("rounds_completed", "Rounds that were averaged.")
        self.rounds_abandoned = counter("rounds_abandoned", "Attempts that ended without a quorum.")
        self.connected_clients = gauge("connected_clients", "Clients that sent something within the liveness window.")
        self.expected_clients = gauge("expected_clients", "Clients that the run is configured for.")
        self.cohort_size = gauge("cohort_size", "Clients admitted to the open round.")
        self.dropped_clients = counter("dropped_clients", "Cohort members that were dropped, by reason.", ("reason",))
        self.round_seconds = self._histogram("round_seconds", "Duration of a round, from opening to the score of its average.")


class _UploadMetrics(_Made):
    """Of what clients send, and of the server's steps on it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        gauge, counter, histogram = self._gauge, self._counter, self._histogram
        self.bytes = counter("bytes", "Payload bytes by direction and kind.", ("direction", "kind"))
        self.uploads = counter(
            "uploads", "Uploads accepted, repeated, trained on, rejected and, of held-out samples, scored.", ("outcome",)
        )
        self.upload_seconds = histogram("upload_seconds", "Time from an upload's header to its acceptance.")
        self.upload_queue_seconds = histogram("upload_queue_seconds", "Time from an upload's acceptance to its training.")
        self.step_seconds = histogram("step_seconds", "Duration of a server step: judging probes and training on one upload.")
        self.trainer_processor_seconds = gauge(
            "trainer_processor_seconds", "Processor time of the thread that trains; the rest is receiving."
        )


class _LearningMetrics(_Made):
    """Of losses, scores and directional derivatives."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        gauge, counter = self._gauge, self._counter
        self.train_loss = gauge("train_loss", "The back's loss on the latest upload.")
        self.head_loss = gauge("head_loss", "The auxiliary head's loss on the latest upload, where the server trains it.")
        self.local_loss = gauge("local_loss", "Median of the clients' local losses in the latest round.")
        self.evaluation_accuracy = gauge("evaluation_accuracy", "Accuracy on held-out data after the latest round.")
        self.evaluation_loss = gauge("evaluation_loss", "Loss on held-out data after the latest round.")
        self.evaluation_perplexity = gauge("evaluation_perplexity", "Perplexity on held-out text after the latest round.")
        self.federated_accuracy = gauge(
            "federated_accuracy", "Accuracy on clients' held-out samples of the model that the latest round started from."
        )
        self.federated_loss = gauge("federated_loss", "Loss on clients' held-out samples of the model that the latest round started from.")
        self.federated_perplexity = gauge(
            "federated_perplexity", "Perplexity on clients' held-out text of the model that the latest round started from."
        )
        self.difference_mean = gauge("difference_mean", "Mean directional derivative, the median over the clients of the latest round.")
        self.difference_variance = gauge(
            "difference_variance", "Variance of directional derivatives, the median over the clients of the latest round."
        )
        self.differences_clipped = counter("differences_clipped", "Directional derivatives that clients clipped.")
        self.differences_non_finite = counter("differences_non_finite", "Directional derivatives that were NaN or infinite on clients.")


class _RefusalMetrics(_Made):
    """Of what was refused, not taken, or taken back."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        gauge, counter = self._gauge, self._counter
        self.steps_skipped = counter(
            "steps_skipped",
            "Server steps that were not taken, because they would have left what is not finite or were out of all proportion.",
        )
        self.log_mismatches = counter(
            "log_mismatches", "Update logs whose replay arrived at other weights, so that the weights were asked for."
        )
        self.diverged_clients = counter(
            "diverged_clients", "Updates of clients that stopped stepping because a loss or gradient was not finite."
        )
        self.diverged = gauge("diverged", "1 once fronts rest because most clients of a round diverged.")
        self.returns_to_best = counter(
            "returns_to_best", "Times that the run went back to its best checkpoint, because its loss was back at chance."
        )
        self.uploads_rejected = counter(
            "uploads_rejected",
            "Acknowledged uploads that nothing was trained on, by reason: the gates refused them, or no step could be taken.",
            ("reason",),
        )
        self.gradients_shortened = counter(
            "gradients_shortened", "Server steps whose gradient was shortened, by the gates or because it was out of proportion."
        )
        self.quarantined_clients = gauge("quarantined_clients", "Clients that the gates set apart in the round to come.")
        self.rejections = counter("rejections", "Requests that were refused, by reason.", ("reason",))
        self.replay_mismatches = counter(
            "replay_mismatches", "Uploads trained again after a restart whose answer differed from the one that was told."
        )


class ServerMetrics(_RoundMetrics, _UploadMetrics, _LearningMetrics, _RefusalMetrics):
    """All metrics of one server on one registry."""

    def __init__(self, registry: CollectorRegistry, spool_bytes: Callable[[], float], run_dir: Path) -> None:
        self.before_scrape: Callable[[], None] = _nothing
        """Called before the metrics are read."""
        registry.register(_BeforeScrape(self))
        super().__init__(registry)
        self.checkpoint_failures = self._counter("checkpoint_failures", "Checkpoints that could not be written.")
        self.spool_budget_bytes = self._gauge("spool_budget_bytes", "Bytes of uploads that may wait on disk.")
        self._gauge("spool_bytes", "Bytes of uploads that wait on disk.").set_function(spool_bytes)
        registry.register(DiskSpaceCollector(run_dir))
        registry.register(ProcessMemoryCollector("heron_server"))
        self.phase("waiting")

    def phase(self, name: str) -> None:
        """Set the phase."""
        for phase in PHASES:
            self._phase.labels(phase=phase).set(1 if phase == name else 0)


def _nothing() -> None:
    """Nobody has anything to add up."""


class _BeforeScrape:
    """Has no samples of its own; registered first, so that it is asked first."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Any:
        """Let what was noted be added up."""
        self._metrics.before_scrape()
        return ()


class DiskSpaceCollector:
    """Exports how large and how free the file system of the run directory is, read when scraped; no samples where it does not tell."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def collect(self) -> Any:
        """Yield the two gauges."""
        size: float | None = None
        free: float | None = None
        with suppress(OSError):
            size, _, free = shutil.disk_usage(self._run_dir)
        yield GaugeMetricFamily("heron_server_disk_size_bytes", "Size of the file system that holds the run directory.", size)
        yield GaugeMetricFamily("heron_server_disk_free_bytes", "Free bytes of the file system that holds the run directory.", free)
