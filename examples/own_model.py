"""A model and data of your own, neither of which HERON has ever seen: `python examples/own_model.py`. Run it from this folder's parent or anywhere.

The server cuts `build()` behind the submodule `features`; devices get it as programs and never see this file. Every device reads `load()`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent))


def build(num_classes: int) -> object:
    """Return a torch module from signals [B, 2, 64] to logits [B, num_classes]; torch is imported on the server alone."""
    from collections import OrderedDict

    from torch import nn

    features = nn.Sequential(
        nn.Conv1d(2, 8, 5, stride=2, padding=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv1d(8, 2, 3, stride=2, padding=1)
    )
    classifier = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(2 * 16, 32), nn.ReLU(), nn.Linear(32, num_classes))
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))


def load(seed: int = 0, count: int = 2000) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return noisy waves of three frequencies, and which one each is."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, count)
    phase = 2 * np.pi * (y[:, None] + 2) * np.arange(64) / 64 + generator.uniform(0, 2 * np.pi, (count, 1))
    x = np.stack([np.sin(phase), np.cos(phase)], 1) + generator.normal(0, 1.0, (count, 2, 64))
    return x.astype(np.float32), y.astype(np.int64)


def load_test() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return waves that no device has."""
    return load(seed=1, count=500)


def main() -> int:
    """Train."""
    from local_run import Run, example_arguments, run_locally

    options = example_arguments(__doc__, rounds=10)
    server = {
        "model": "python:own_model:build",
        "cut": "features",
        "data-spec": "2x64:low,middle,high",
        "eval-data": "python:own_model:load_test",
        "local-steps": options.local_steps or 10,
    }
    return run_locally(Run(options, server, "python:own_model:load", code=Path(__file__).resolve().parent))


if __name__ == "__main__":
    sys.exit(main())
