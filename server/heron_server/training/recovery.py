"""When a run goes back to its best checkpoint: a pure rule over the losses of its rounds.

A front that its steps destroyed stays finite, and no later round brings it back; what it knew is in a checkpoint. Going back is one decision, recorded with the
checkpoint that it made, so that a restart and an audit follow it instead of taking it again. From then on fronts take half the step: the whole one destroyed them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

AT_CHANCE = 0.98
"""A loss of this share of what guessing costs, or more, knows nothing."""

LEARNT = 0.7
"""A loss below this share has learnt something that is worth going back to."""

CHANCE_ROUNDS = 3
"""So many rounds in a row at chance are no accident of one."""


@dataclass(frozen=True)
class Return:
    """After so many rounds the run went back to what it was after `to_round` rounds."""

    after_round: int
    to_round: int


@dataclass(frozen=True)
class Recovery:
    """What is known of a run's losses.

    Attributes:
        best_round: after so many rounds the model had its lowest loss, and its checkpoint is kept; None before there is one.
        best_loss: that loss.
        first_loss: the first one that was finite: what knowing nothing costs where classes do not say it.
        rounds_at_chance: how many of the latest rounds in a row were.
        step_factor: the share of their step that fronts take.
        returns: what was decided so far, in order.

    """

    best_round: int | None = None
    best_loss: float = math.inf
    _: KW_ONLY
    first_loss: float | None = None
    rounds_at_chance: int = 0
    step_factor: float = 1.0
    returns: tuple[Return, ...] = ()

    def after_round(self, completed: int, loss: float | None, *, scored: int | None, chance: float | None) -> Recovery:
        """Return what is known after one more round; `returns` has one more if the run goes back now.

        Args:
            completed: how many rounds are over.
            loss: of this round; None if nothing was trained.
            scored: the model that it is of, by the rounds it had behind it; None if no checkpoint of it is kept.
            chance: what guessing costs; None for the first loss.

        """
        if loss is None:
            return self
        finite = math.isfinite(loss)
        known = replace(self, first_loss=loss) if self.first_loss is None and finite else self
        level = chance if chance is not None else known.first_loss
        at_chance = not finite or (level is not None and loss >= AT_CHANCE * level)
        known = replace(known, rounds_at_chance=self.rounds_at_chance + 1 if at_chance else 0)
        if finite and scored is not None and loss < self.best_loss:
            known = replace(known, best_round=scored, best_loss=loss)
        return known if known.rounds_at_chance < CHANCE_ROUNDS else known.going_back(completed, level)

    def going_back(self, completed: int, level: float | None) -> Recovery:
        """Return what is known after the run went back, if there is anything worth going back to; `level` is what knowing nothing costs."""
        if self.best_round is None or level is None or self.best_loss >= LEARNT * level:
            return self
        decided = Return(completed, self.best_round)
        return replace(self, rounds_at_chance=0, step_factor=self.step_factor / 2, returns=(*self.returns, decided))

    def without_best(self) -> Recovery:
        """The best checkpoint cannot be read: nothing was gone back to, and another one is looked for."""
        return replace(self, best_round=None, best_loss=math.inf)

    def state(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        best = self.best_loss if self.best_round is not None else None
        returns = [[one.after_round, one.to_round] for one in self.returns]
        return {**vars(self), "best_loss": best, "returns": returns}

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> Recovery:
        """Return what a state was made from; checkpoints of earlier versions have none."""
        if state is None:
            return cls()
        best = math.inf if state["best_loss"] is None else float(state["best_loss"])
        return cls(**{**state, "best_loss": best, "returns": tuple(Return(int(after), int(to)) for after, to in state["returns"])})
