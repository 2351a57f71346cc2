"""A front as an attacker meets it: its weights are known, samples are in units of the data's range, and rows leave it clipped."""

from __future__ import annotations

import numpy as np
import torch

from heron_common.specification.data_specification import DataSpecification
from heron_server.leakage.defence import Defence
from heron_server.models.split_model import SplitModel

_ROWS_AT_ONCE = 64


class Target:
    """The front of a model in evaluation mode, behind the normalisation of its data and before the random part of a defence.

    Samples are in units of the range that the attacker's own have: one range for all numbers of an image, one for each column of a table. So an error means
    the same whether pixels end at 1, 16 or 255.
    """

    def __init__(self, model: SplitModel, data: DataSpecification, *, defence: Defence, known: torch.Tensor) -> None:
        """`known` are samples of the attacker as a run reads them, [n, *shape]; they say what the range is."""
        self._front, self._defence = model.front.eval(), defence
        rank = len(data.input_shape)
        self._mean = _by_channel(data.channel_means or (data.mean,), rank)
        self._deviation = _by_channel(data.channel_deviations or (data.standard_deviation,), rank)
        raw = known * self._deviation + self._mean
        self._low, high = (raw.amin(0), raw.amax(0)) if rank == 1 else (raw.min(), raw.max())
        self._range = torch.where(high > self._low, high - self._low, torch.ones_like(high))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return clipped activations [n, *cut] of samples [n, *shape] in units of the range; gradients pass."""
        z: torch.Tensor = self._front((x * self._range + self._low - self._mean) / self._deviation)
        return self._defence.clipped(z)

    def scaled(self, samples: torch.Tensor) -> torch.Tensor:
        """Return samples as a run reads them in units of the range: those of the attacker lie in [0, 1]."""
        return (samples * self._deviation + self._mean - self._low) / self._range

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same as a call, some rows at a time and without a graph."""
        with torch.no_grad():
            return torch.cat([self(piece) for piece in torch.split(x, _ROWS_AT_ONCE)])


def _by_channel(values: tuple[float, ...], rank: int) -> torch.Tensor:
    array = torch.from_numpy(np.array(values, np.float32))
    return array.reshape(-1, *(1,) * (rank - 1)) if len(values) > 1 else array.reshape(())
