"""Scoring the global model, against a loop over single samples."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.data.reading import SampleReader
from heron_common.data.sources import DataSource
from heron_common.files.atomic import finite
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.split_model import SplitModel
from heron_server.training.evaluation import Score, evaluate

SPECIFICATION = DataSpecification("test", (1, 4, 4), num_classes=3, mean=0.5, standard_deviation=2.0)


class Rows:
    """Rows of an array in memory."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array
        self.shape = array.shape

    def read(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self._array[rows]


def source(count: int) -> DataSource:
    generator = np.random.default_rng(count)
    x = Rows(generator.standard_normal((count, 1, 4, 4)).astype(np.float32))
    return DataSource("test", inputs=x, labels=Rows(generator.integers(0, 3, count)), rows=np.arange(count))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_every_sample_counts_once_whatever_the_batches_are(tiny_model: SplitModel, count: int) -> None:
    data = source(count)
    score = evaluate(tiny_model, SampleReader(data, SPECIFICATION))
    x, y = SampleReader(data, SPECIFICATION).batch(np.arange(count))
    with torch.no_grad():
        logits = tiny_model.back(tiny_model.front(torch.from_numpy(x)))
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none")
    assert score.num_examples == count
    assert score.accuracy == sum(int(row.argmax() == label) for row, label in zip(logits.numpy(), y, strict=True)) / count
    assert score.loss == pytest.approx(sum(losses.tolist()) / count, rel=1e-5)


def test_a_shard_is_scored_on_its_rows_only(tiny_model: SplitModel) -> None:
    data = source(20)
    parts = [evaluate(tiny_model, SampleReader(data.restricted(np.arange(start, start + 10)), SPECIFICATION)) for start in (0, 10)]
    whole = evaluate(tiny_model, SampleReader(data, SPECIFICATION))
    assert whole.loss == pytest.approx(sum(part.loss for part in parts) / 2, rel=1e-6)
    assert whole.accuracy == pytest.approx(sum(part.accuracy for part in parts) / 2)


def test_scoring_changes_no_weight_and_leaves_no_gradient(tiny_model: SplitModel) -> None:
    before = [p.detach().clone() for part in (tiny_model.front, tiny_model.back) for p in part.parameters()]
    evaluate(tiny_model, SampleReader(source(30), SPECIFICATION))
    after = [p for part in (tiny_model.front, tiny_model.back) for p in part.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


def test_a_score_that_was_not_finite_comes_back_from_a_checkpoint(tiny_model: SplitModel) -> None:
    """One held-out upload of 1e38 makes its loss infinite, which JSON cannot hold: null, on which a trainer died at every resume."""
    score, other = Score(tiny_model), Score(tiny_model)
    score.add(torch.full((2, 3), 3e38) * torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1, 1]))
    kept = json.loads(json.dumps(finite(score.sums()), allow_nan=False))
    other.include(Score.of(tiny_model, kept))
    assert other.result().num_examples == 2 and not math.isfinite(other.result().loss)
