"""What samples look like to the model: figures against numpy's own over everything at once, and what is worth a warning."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heron_common.data import open_source
from heron_common.data.inspection import inspect_source, page
from heron_common.data.specification import parse_specification
from heron_common.data.tally import FAR_FROM_NORMAL, SampleTally


def test_figures_are_those_of_all_samples_together() -> None:
    x = np.random.default_rng(0).normal(0.3, 1.5, (100, 1, 4, 4)).astype(np.float32)
    y = np.arange(100) % 3
    tally = SampleTally(parse_specification("1x4x4:3"))
    for start in range(0, 100, 33):
        tally.add(x[start : start + 33], y[start : start + 33])
    assert (tally.least, tally.most) == (x.min(), x.max())
    assert (tally.mean, tally.deviation) == (pytest.approx(x.mean(dtype=np.float64)), pytest.approx(x.std(dtype=np.float64)))
    assert tally.fields()["classes"] == "0:34,1:33,2:33" and not tally.is_far_from_normal


@pytest.mark.parametrize(
    ("specification", "is_far"), [("digits", False), ("1x8x8:10", True), ("1x8x8:10:0:16", False), ("1x8x8:10:0:100000", True)]
)
def test_unnormalised_digits_are_worth_a_warning(specification: str, is_far: bool) -> None:
    found = inspect_source(open_source("digits:test"), parse_specification(specification), None)
    lines = page(found, 0)
    assert any(line.startswith("values of x") and "after normalisation, mean" in line for line in lines)
    assert (f"warning: {FAR_FROM_NORMAL}" in lines) == is_far and lines[-1] == "fits the run"


@pytest.mark.parametrize(("lengths", "share"), [((), 1 - 5 / 16), ((2, 8), 1 - 5 / 10)])
def test_padding_is_that_of_what_is_computed(lengths: tuple[int, ...], share: float) -> None:
    specification = dataclasses.replace(parse_specification("text:8:2"), lengths=lengths)
    tally = SampleTally(specification)
    tally.add(np.array([[1, 2, 3, -1, -1, -1, -1, -1], [4, 5, -1, -1, -1, -1, -1, -1]]))
    assert tally.padded_share == pytest.approx(share)
    assert tally.rows()[0][0] == "padding" and not tally.is_far_from_normal
