"""The gates at work: figures of an upload before anything is trained on it, verdicts into ledger, log and metrics.

Here too, and without gates, uploads are refused whose step was not taken (`server_step.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from heron_server.metrics import ServerMetrics
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.trainer_queue import TrainerQueue
from heron_server.training.gates import ACCEPTED, NO_GATES, Gate, GateSettings, Verdict
from heron_server.training.proportion import StepRefusal
from heron_server.training.uploads import DecodedUpload

log = logging.getLogger(__name__)


class Gatekeeper:
    """Stands before every server step; without settings it measures nothing, and notes only what the step itself refused."""

    def __init__(self, settings: GateSettings | None, metrics: ServerMetrics) -> None:
        self._measures = settings is not None
        self._gate = Gate(settings or NO_GATES)
        self._metrics = metrics
        self._judged: dict[str, tuple[float, float]] = {}

    def judge(self, upload: AcceptedUpload, decoded: DecodedUpload, loss: Callable[[], float]) -> Verdict:
        """Return whether an upload may be trained on, once for each upload. `loss` is the back's mean loss on it, taken where it is asked for."""
        if not self._measures:
            return ACCEPTED
        client, round_index = upload.key.client_id, upload.key.round.round_index
        norm, judged = decoded.level(), 0.0
        verdict = self._gate.judge_norm(client, round_index, norm)
        if verdict.accepted:
            judged = loss()
            # What is not finite is refused by the step itself.
            verdict = self._gate.judge_loss(client, round_index, judged) if math.isfinite(judged) else ACCEPTED
        if verdict.accepted:
            self._judged[client] = norm, judged
        return verdict

    @property
    def gradient_limit(self) -> float | None:
        """The length that the next step's gradient may have; None where nothing is to be measured."""
        return self._gate.limit_gradient() if self._measures else None

    def trained(self, client_id: str, gradient_norm: float | None) -> None:
        """An upload that was admitted was trained on with a gradient of this length before it was shortened; None if nothing moved."""
        figures = self._judged.pop(client_id, None)
        if figures is not None and gradient_norm is not None and all(map(math.isfinite, (*figures, gradient_norm))):
            activation_norm, server_loss = figures
            self._gate.accept(client_id, activation_norm, server_loss=server_loss, gradient_norm=gradient_norm)

    def refuse(self, upload: AcceptedUpload, refusal: StepRefusal, queue: TrainerQueue) -> None:
        """The step of an upload that was admitted was not taken."""
        key = upload.key
        self._judged.pop(key.client_id, None)
        verdict = self._gate.refuse(
            key.client_id, key.round.round_index, reason=refusal.reason, measured=refusal.measured, limit=refusal.limit
        )
        self.reject(upload, verdict, queue, figure=refusal.figure)

    def counted_rows(self, client_id: str, rows: int, batch_size: int) -> int:
        """Return how many rows of a client count where weights are averaged: those of refused uploads do not."""
        return max(0, rows - batch_size * self._gate.refused_in_round(client_id))

    @property
    def num_refused_clients(self) -> int:
        """How many clients have had an upload refused in this round."""
        return self._gate.num_refused_in_round

    def round_closed(self, next_round: int) -> None:
        """A round was averaged."""
        self._gate.round_closed()
        self._metrics.quarantined_clients.set(len(self._gate.quarantined(next_round)))

    def set_apart(self, round_index: int) -> tuple[str, ...]:
        """Return the clients that have no part in a round."""
        return self._gate.quarantined(round_index) if self._measures else ()

    def release(self, client_ids: tuple[str, ...]) -> None:
        """Hear clients again at once."""
        for client_id in client_ids:
            self._gate.release(client_id)

    def report(self) -> dict[str, dict[str, int]] | None:
        """Return the refusals by client and reason, for the summary; None without gates and without any."""
        refusals = self._gate.refusals()
        return refusals if refusals or self._measures else None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the gates."""
        return self._gate.state()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to it; gates that are new to a run begin anew."""
        if state is not None:
            self._gate.restore(state)

    def reject(self, upload: AcceptedUpload, verdict: Verdict, queue: TrainerQueue, *, figure: str = "") -> None:
        """Report an upload as rejected: to its client, in log and metrics."""
        reason = str(verdict.reason)
        log.warning(
            "an upload was rejected",
            extra={
                "client": upload.key.client_id,
                "round_index": upload.key.round.round_index,
                "local_step": upload.key.local_step,
                "reason": reason,
                **({"figure": figure} if figure else {}),
                "measured": verdict.measured,
                "limit": verdict.limit,
                "set_apart": verdict.quarantines,
            },
        )
        self._metrics.uploads_rejected.labels(reason=reason).inc()
        queue.upload_rejected(upload, reason, verdict.quarantines)
