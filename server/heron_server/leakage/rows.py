"""Who has which rows: those that are attacked, and those that the attacker has of its own, drawn from one source and disjoint."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch

from heron_common.data.reading import SampleReader
from heron_common.errors import DataError

FEWEST_OWN_ROWS = 32
"""Fewer teach an attack nothing: what it would measure is how little it knows."""

_HELD_SHARE = 0.15
"""Of the attacker's own rows, for choosing when to stop and how much to smooth."""


@dataclass(frozen=True)
class AttackRows:
    """Samples as a run reads them, [n, *shape], and their labels, [n, ...].

    Attributes:
        own, own_labels: what the attacker learns from.
        held: the attacker's own too, by which it chooses.
        attacked, attacked_labels: whose activations it is given.

    """

    own: torch.Tensor
    own_labels: torch.Tensor
    held: torch.Tensor
    _: KW_ONLY
    attacked: torch.Tensor
    attacked_labels: torch.Tensor

    @property
    def num_known(self) -> int:
        """How many rows the attacker has."""
        return len(self.own) + len(self.held)

    def limited(self, numbers_per_row: int, most: int) -> AttackRows:
        """Return the same with fewer of the attacker's rows, so that all of them have at most so many numbers; never fewer than an attack needs."""
        rows = max(FEWEST_OWN_ROWS, most // max(1, numbers_per_row))
        if self.num_known <= rows:
            return self
        held = max(1, round(rows * _HELD_SHARE))
        own = rows - held
        return AttackRows(
            self.own[:own], self.own_labels[:own], self.held[:held], attacked=self.attacked, attacked_labels=self.attacked_labels
        )


def draw_rows(reader: SampleReader, *, attacked: int, own: int, seed: int = 0) -> AttackRows:
    """Draw rows of a source, at most as many as are asked for: the attacked first, of what is left the attacker's.

    Raises:
        DataError: too few are left to learn from, or a sample is not what the run expects.

    """
    total = reader.num_examples
    if total < attacked + FEWEST_OWN_ROWS:
        raise DataError(
            f"an attacker needs {FEWEST_OWN_ROWS} rows of its own beside the {attacked} that are attacked, but {reader.source.name!r} has {total} "
            "in all: attack fewer by --attacked, or give a larger source"
        )
    order = np.random.default_rng(seed).permutation(total)[: attacked + own]
    x, y = reader.batch(order)
    samples, labels = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))
    held = max(1, math.floor((len(order) - attacked) * _HELD_SHARE))
    known = slice(attacked + held, None)
    return AttackRows(
        samples[known], labels[known], samples[attacked : attacked + held], attacked=samples[:attacked], attacked_labels=labels[:attacked]
    )
