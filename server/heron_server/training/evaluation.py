"""Score the global model (front and back) on held-out data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from heron_common.data.reading import SampleReader
from heron_server.models.split_model import SplitModel

_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """Share of samples whose largest logit is the label's, and mean loss."""

    accuracy: float
    loss: float
    num_examples: int


def evaluate(model: SplitModel, source: SampleReader) -> Evaluation:
    """Score front and back together in eval mode, a batch at a time; every sample counts once."""
    device = next(model.back.parameters()).device
    correct, loss = 0, 0.0
    model.front.eval()
    model.back.eval()
    with torch.no_grad():
        for start in range(0, source.num_examples, _BATCH):
            x, y = source.batch(np.arange(start, min(start + _BATCH, source.num_examples)))
            labels = torch.from_numpy(y).to(device)
            logits = model.back(model.front(torch.from_numpy(x).to(device)))
            correct += int((logits.argmax(1) == labels).sum())
            loss += float(model.sample_losses(logits, labels).double().sum())
    return Evaluation(correct / source.num_examples, loss / source.num_examples, source.num_examples)
