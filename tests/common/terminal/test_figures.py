"""Figures for people: two units of time, percent, separators, and no power of ten."""

from __future__ import annotations

import pytest

from heron_common.terminal.figures import human_number, human_seconds, human_share


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0042, "4.2 ms"),
        (0.25, "0.25 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.6, "1 h"),
        (7530, "2 h 6 min"),
        (86400, "1 d"),
        (10 * 86400 + 7200, "10 d 2 h"),
        (float("nan"), "nan"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (126, "126"),
        (1048576, "1,048,576"),
        (1048576.0, "1,048,576"),
        (-12345.6, "-12,346"),
        (0.12345678, "0.1235"),
        (2.5e-7, "2.5e-07"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert human_number(value) == text


def test_shares() -> None:
    assert human_share(0.97222) == "97.2%"
