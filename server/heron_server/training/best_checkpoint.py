"""Keeps a run's best checkpoint, and goes back to it where `recovery.py` says so."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from heron_common.data.reading import SampleReader
from heron_common.errors import CheckpointError, ConfigurationError, StorageError
from heron_common.specification.data_specification import Task
from heron_server.metrics import ServerMetrics
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore
from heron_server.training.evaluation import evaluate
from heron_server.training.gatekeeping import Gatekeeper
from heron_server.training.recovery import CHANCE_ROUNDS, Recovery
from heron_server.training.trainer import Trainer

log = logging.getLogger(__name__)


class BestCheckpoint:
    """The run's own view of how well it does: by --validation-data, else by the loss of its server steps; never by --eval-data."""

    def __init__(
        self,
        *,
        trainer: Trainer,
        checkpoints: CheckpointStore,
        gatekeeper: Gatekeeper,
        metrics: ServerMetrics,
        validation_source: SampleReader | None,
    ) -> None:
        self._trainer, self._checkpoints, self._gatekeeper, self._metrics = trainer, checkpoints, gatekeeper, metrics
        self._validation_source = validation_source
        self.known = Recovery()
        self._hopeless = 0

    def after_round(self, completed: int, server_loss: float | None, load: Callable[[Checkpoint], None]) -> bool:
        """Account for a closed round; goes back, by `load`, to the best checkpoint if the run has unlearnt what it knew, and returns whether it did.

        The loss of a round's server steps is of the fronts that the round started from: what came of them later may be what destroys them.
        """
        if server_loss is None and self._gatekeeper.num_refused_clients:
            # Activations that no step could be taken on: worse than any loss.
            server_loss = math.nan
        loss, scored = self._validated(completed) if self._validation_source is not None else (server_loss, completed - 1)
        # The first weights have learnt nothing.
        kept = scored == completed or (scored > 0 and self._checkpoints.has(scored))
        return self._follow(self.known.after_round(completed, loss, scored=scored if kept else None, chance=self._chance), load)

    def after_attempt(self, completed: int, is_hopeless: bool, load: Callable[[Checkpoint], None]) -> bool | None:
        """Account for an attempt that ended without a quorum; `is_hopeless` says that nothing was trained, and half of the clients had their uploads refused.

        After CHANCE_ROUNDS such attempts in a row every other would end alike: returns whether the run went back, None before that.
        """
        self._hopeless = self._hopeless + 1 if is_hopeless else 0
        if self._hopeless < CHANCE_ROUNDS:
            return None
        self._hopeless = 0
        level = self._chance if self._chance is not None else self.known.first_loss
        return self._follow(self.known.going_back(completed, level), load)

    @property
    def _chance(self) -> float | None:
        model = self._trainer.model
        return math.log(model.num_classes) if model.task is Task.CLASSIFICATION else None

    def _follow(self, known: Recovery, load: Callable[[Checkpoint], None]) -> bool:
        before, self.known = self.known, known
        if len(known.returns) == len(before.returns):
            return False
        decided = self.known.returns[-1]
        try:
            load(self._checkpoints.read(decided.to_round))
        except (CheckpointError, ConfigurationError, StorageError) as exc:
            self.known = before.without_best()
            log.error("the best checkpoint cannot be gone back to", extra={"reason": str(exc)})
            return False
        self._metrics.returns_to_best.inc()
        log.error(
            "the run has unlearnt what it knew: it goes back to its best checkpoint, and fronts take half the step from now on",
            extra={
                "rounds_completed": decided.after_round,
                "rounds_completed_there": decided.to_round,
                "loss_there": self.known.best_loss,
                "step_factor": self.known.step_factor,
            },
        )
        return True

    def _validated(self, completed: int) -> tuple[float, int]:
        source = self._validation_source
        assert source is not None
        return evaluate(self._trainer.model, source).loss, completed

    def summary(self) -> dict[str, Any]:
        """Return the summary's part."""
        state = self.known.state()
        returns = [vars(one) for one in self.known.returns]
        return {
            "best_round": state["best_round"],
            "best_loss": state["best_loss"],
            "step_factor": self.known.step_factor,
            "returns": returns,
        }
