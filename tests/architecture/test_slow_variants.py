"""The list of slow variants: each pattern names a test that there is, so that a renamed one does not come back into `make test` unseen."""

from __future__ import annotations

import re

import pytest

from tests.harness.sources import ROOT
from tests.slow_variants import SLOW_VARIANTS, is_slow_variant


@pytest.mark.parametrize("pattern", SLOW_VARIANTS)
def test_a_pattern_names_a_test_that_exists(pattern: str) -> None:
    path, name = pattern.split("::")
    begins = name.partition("*")[0]
    assert re.search(rf"^def {begins}", (ROOT / path).read_text(), re.MULTILINE) if begins else (ROOT / path).exists()


def test_parameters_in_brackets_are_matched_as_they_are() -> None:
    node = "tests/server/models/test_resnet.py::test_programs_equal_the_network[50, CIFAR stem, groups-gradient]"
    assert is_slow_variant(node) and not is_slow_variant(node.replace("gradient", "loss"))
