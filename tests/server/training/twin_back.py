"""A naive second server: the back as plain torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from heron_server.models.split_model import SplitModel


class TwinBack:
    """The back as plain torch, with the server's default optimiser."""

    def __init__(self, model: SplitModel, learning_rate: float = 2e-3) -> None:
        self.back = copy.deepcopy(model.back)
        self._steps = torch.optim.Adam(self.back.parameters(), learning_rate)

    def cut_gradient(self, z: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return d loss_i / d z_i, a sample at a time."""
        rows = []
        for sample, label in zip(torch.from_numpy(z), torch.from_numpy(y), strict=True):
            one = sample[None].requires_grad_()
            rows += torch.autograd.grad(cross_entropy(self.back(one), label[None]), one)
        return torch.cat(rows).numpy()

    def losses(self, z: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return cross_entropy(self.back(torch.from_numpy(z)), torch.from_numpy(y), reduction="none").numpy()

    def step(self, z: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
        self._steps.zero_grad()
        cross_entropy(self.back(torch.from_numpy(z)), torch.from_numpy(y)).backward()
        self._steps.step()
