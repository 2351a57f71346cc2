"""Score the global model (front and back) on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch

from heron_common.data.reading import SampleReader
from heron_common.specification.data_specification import IGNORED, Task
from heron_server.models.split_model import SplitModel, device_of, predict
from heron_server.models.vocabulary_loss import most_likely
from heron_server.training.aligned import aligned_tensor

_BATCH = 256
_BATCH_OF_SEQUENCES = 16
"""A sequence has as many activations as many images."""


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on held-out data.

    Attributes:
        accuracy: share of samples (of next tokens: of tokens) whose largest logit is the label's; None for a regression.
        loss: mean over samples; of next tokens over tokens.
        num_examples: how many samples were scored.
        perplexity: exp of the mean loss of a next token; None for other tasks.

    """

    accuracy: float | None
    loss: float
    _: KW_ONLY
    num_examples: int
    perplexity: float | None = None


class Score:
    """Sums over batches, from which the figures of a whole follow."""

    def __init__(self, model: SplitModel) -> None:
        self._model = model
        self._correct, self._loss, self._units, self._examples = 0, 0.0, 0, 0

    def add(self, outputs: Any, labels: torch.Tensor) -> None:
        """Account for a batch of a back's outputs."""
        losses = self._model.sample_losses(outputs, labels).double()
        self._examples += len(labels)
        if self._model.task is Task.NEXT_TOKEN:
            counted = labels != IGNORED
            tokens = counted.sum(1)
            self._loss += float((losses * tokens).sum())
            self._units += int(tokens.sum())
            self._correct += int(((most_likely(outputs) == labels) & counted).sum())
            return
        self._loss += float(losses.sum())
        self._units += len(labels)
        if self._model.task is Task.CLASSIFICATION:
            self._correct += int((outputs.argmax(1) == labels).sum())

    def sums(self) -> list[float]:
        """Return the sums so far as JSON values."""
        return [self._correct, self._loss, self._units, self._examples]

    @classmethod
    def of(cls, model: SplitModel, sums: list[Any]) -> Score:
        """Return a score with the sums that another one had; a loss that was not finite, which no checkpoint holds, is null in them."""
        score = cls(model)
        correct, loss, units, examples = sums
        score._loss = math.nan if loss is None else float(loss)
        score._correct, score._units, score._examples = int(correct), int(units), int(examples)
        return score

    def include(self, other: Score) -> None:
        """Account for what another score accounts for."""
        self._correct += other._correct
        self._loss += other._loss
        self._units += other._units
        self._examples += other._examples

    def result(self) -> Evaluation:
        """Return the figures of all batches."""
        units = max(1, self._units)
        accuracy = None if self._model.task is Task.REGRESSION else self._correct / units
        loss = self._loss / units
        # Beyond it the exponential is infinite, which no summary can hold.
        perplexity = math.exp(min(loss, 700.0)) if self._model.task is Task.NEXT_TOKEN else None
        return Evaluation(accuracy, loss, num_examples=self._examples, perplexity=perplexity)


OnBatch = Callable[[Any, torch.Tensor], None]
"""Sees a back's outputs and their labels."""


def evaluate(model: SplitModel, source: SampleReader, *, batch_size: int | None = None, on_batch: OnBatch | None = None) -> Evaluation:
    """Score front and back together in eval mode, a batch at a time; every sample counts once.

    Another batch size than a run's own changes memory, speed and rounding.
    """
    device = device_of(model.back)
    score = Score(model)
    model.front.eval()
    model.back.eval()
    size = batch_size or (_BATCH_OF_SEQUENCES if model.tokens else _BATCH)
    with torch.no_grad():
        for start in range(0, source.num_examples, size):
            x, y = source.shortest_batch(np.arange(start, min(start + size, source.num_examples)))
            samples = aligned_tensor(x, device)
            outputs, labels = predict(model.back, model.front(samples), model.mask(samples)), aligned_tensor(y, device)
            score.add(outputs, labels)
            if on_batch is not None:
                on_batch(outputs, labels)
    return score.result()
