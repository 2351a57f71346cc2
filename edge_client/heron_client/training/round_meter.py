"""What a client measures about its own round: losses, differences, passes, skipped steps."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from heron_common.numerics.tensors import Float32Array, Float64Array
from heron_common.numerics.zeroth_order import GuardedDerivatives, RunningQuantile, SecondMoment
from heron_common.protocol.messages import LocalStatistics, PeakMemory


@dataclass
class RoundMeter:
    """Running sums over a round's differences and losses (Welford for the variance)."""

    second_moment: SecondMoment
    quantile: RunningQuantile
    _: KW_ONLY
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    clipped: int = 0
    non_finite: int = 0
    forward_passes: int = 0
    forward_equivalents: float = 0.0
    steps_skipped: int = 0
    diverged: bool = False
    step_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def add_passes(self, rows: int, equivalents: float) -> None:
        """Account for `rows` samples run through a program that costs `equivalents` forward passes each."""
        self.forward_passes += rows
        self.forward_equivalents += rows * equivalents

    def add_differences(self, guarded: GuardedDerivatives) -> None:
        """Account for the guarded derivatives of one step; take over its running figures unless the round diverged, for then the step is not taken."""
        self.clipped += guarded.num_clipped
        self.non_finite += guarded.num_non_finite
        if not self.diverged:
            self.second_moment, self.quantile = guarded.second_moment, guarded.quantile
            self._add_values(guarded.values)

    def _add_values(self, values: Float64Array) -> None:
        for value in values.tolist():
            self.count += 1
            delta = value - self.mean
            self.mean += delta / self.count
            self.squares += delta * (value - self.mean)

    def add_losses(self, losses: Float32Array) -> None:
        """Account for the finite losses of one step; the others are counted with the differences that they make."""
        finite = losses[np.isfinite(losses)]
        if finite.size:
            self.losses.append(float(np.mean(finite, dtype=np.float64)))

    def to_statistics(self, wait_seconds: float, peak: PeakMemory) -> LocalStatistics:
        """Return what the client reports of the round."""
        return LocalStatistics(
            second_moment=self.second_moment.value,
            mean_local_loss=float(np.mean(self.losses)) if self.losses else 0.0,
            forward_passes=self.forward_passes,
            differences=self.count,
            difference_mean=self.mean,
            difference_variance=self.squares / self.count if self.count else 0.0,
            differences_clipped=self.clipped,
            differences_non_finite=self.non_finite,
            step_seconds=self.step_seconds,
            upload_wait_seconds=wait_seconds,
            peak_memory_bytes=peak.resident_bytes,
            peak_anonymous_bytes=peak.anonymous_bytes,
            derivative_quantile=self.quantile.value,
            steps_skipped=self.steps_skipped,
            diverged=self.diverged,
            forward_equivalents=self.forward_equivalents,
        )
