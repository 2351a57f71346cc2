"""A module and data that are built the same whoever asks for them: as objects, or by name as a command does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

SIZE, CLASSES = 6, 3

SMALL: dict[str, Any] = {"clients": 2, "rounds": 3, "local_steps": 2, "batch_size": 8, "cut": "features", "seed": 3}


class Net(nn.Module):
    """Two layers that a cut may stand between, with a buffer and a part in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(SIZE, 4), nn.Tanh())
        self.rest = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, CLASSES))
        self.register_buffer("scale", torch.tensor(2.0))
        self.rest[1].eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.rest(self.features(x) * self.scale)
        return logits


def build() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Net()


def load(seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, CLASSES, 120)
    x = generator.normal(0, 0.5, (120, SIZE)) + np.eye(CLASSES, SIZE)[y] * 2
    return x.astype(np.float32), y


def load_test() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return load(1)
