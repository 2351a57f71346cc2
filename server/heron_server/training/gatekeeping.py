"""The gates at work: figures of an upload before anything is trained on it, verdicts into ledger, log and metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from heron_server.metrics import ServerMetrics
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.trainer_queue import TrainerQueue
from heron_server.training.gates import ACCEPTED, Gate, GateSettings, Verdict
from heron_server.training.uploads import DecodedUpload

log = logging.getLogger(__name__)


class Gatekeeper:
    """Stands before every server step; without settings it lets everything pass and measures nothing."""

    def __init__(self, settings: GateSettings | None, metrics: ServerMetrics) -> None:
        self._gate = Gate(settings) if settings is not None else None
        self._metrics = metrics
        self._judged: dict[str, tuple[float, float]] = {}

    def admits(self, upload: AcceptedUpload, decoded: DecodedUpload, loss: Callable[[], float], queue: TrainerQueue) -> bool:
        """Return whether an upload may be trained on; reports it as rejected if not. `loss` is the back's mean loss on it, taken where it is asked for."""
        if self._gate is None:
            return True
        client, round_index = upload.key.client_id, upload.key.round.round_index
        base = decoded.activations[: len(decoded.labels)]
        norm, judged = float(np.sqrt(np.mean(np.square(base, dtype=np.float64)))), 0.0
        verdict = self._gate.judge_norm(client, round_index, norm)
        if verdict.accepted:
            judged = loss()
            # What is not finite moves no weight and is counted as a skipped step: nothing to learn from, for the gates either.
            verdict = self._gate.judge_loss(client, round_index, judged) if math.isfinite(judged) else ACCEPTED
        if verdict.accepted:
            self._judged[client] = norm, judged
            return True
        self._reject(upload, verdict, queue)
        return False

    @property
    def gradient_limit(self) -> float | None:
        """The length that the next step's gradient may have; None where nothing is to be measured."""
        return None if self._gate is None else self._gate.limit_gradient()

    def trained(self, client_id: str, gradient_norm: float | None, limit: float | None) -> None:
        """An upload that was admitted was trained on with a gradient of this length, shortened to `limit`; None if nothing moved."""
        figures = self._judged.pop(client_id, None)
        if self._gate is None or figures is None or gradient_norm is None:
            return
        if limit is not None and gradient_norm > limit:
            self._metrics.gradients_shortened.inc()
        if all(map(math.isfinite, (*figures, gradient_norm))):
            self._gate.accept(client_id, *figures, gradient_norm)

    def counted_rows(self, client_id: str, rows: int, batch_size: int) -> int:
        """Return how many rows of a client count where weights are averaged: those of refused uploads do not."""
        return rows if self._gate is None else max(0, rows - batch_size * self._gate.refused_in_round(client_id))

    def round_closed(self, next_round: int) -> None:
        """A round was averaged."""
        if self._gate is not None:
            self._gate.round_closed()
            self._metrics.quarantined_clients.set(len(self._gate.quarantined(next_round)))

    def set_apart(self, round_index: int) -> tuple[str, ...]:
        """Return the clients that have no part in a round."""
        return () if self._gate is None else self._gate.quarantined(round_index)

    def release(self, client_ids: tuple[str, ...]) -> None:
        """Hear clients again at once."""
        for client_id in client_ids:
            if self._gate is not None:
                self._gate.release(client_id)

    def report(self) -> dict[str, dict[str, int]] | None:
        """Return the refusals by client and reason, for the summary; None without gates."""
        return None if self._gate is None else self._gate.refusals()

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint keeps of the gates."""
        return None if self._gate is None else self._gate.state()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to it; gates that are new to a run begin anew."""
        if self._gate is not None and state is not None:
            self._gate.restore(state)

    def _reject(self, upload: AcceptedUpload, verdict: Verdict, queue: TrainerQueue) -> None:
        reason = str(verdict.reason)
        log.warning(
            "an upload was rejected",
            extra={
                "client": upload.key.client_id,
                "round_index": upload.key.round.round_index,
                "local_step": upload.key.local_step,
                "reason": reason,
                "measured": verdict.measured,
                "limit": verdict.limit,
                "set_apart": verdict.quarantines,
            },
        )
        self._metrics.uploads_rejected.labels(reason=reason).inc()
        queue.upload_rejected(upload, reason, verdict.quarantines)
