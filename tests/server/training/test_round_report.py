"""A run that unlearns what it knew says so, once."""

from __future__ import annotations

import math

import pytest

from heron_server.summary import RoundRecord
from heron_server.training.round_report import is_back_at_chance, warn_at_chance

CHANCE = math.log(10)


def rounds(*losses: float | None) -> list[RoundRecord]:
    return [
        RoundRecord(
            i,
            0,
            cohort=1,
            updates=1,
            test_accuracy=None,
            test_loss=None,
            local_loss=None,
            server_loss=loss,
            client_forward_passes=0,
            client_forward_equivalents=0,
            seconds=0.0,
        )
        for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((2.3, 1.2, 0.3, 2.31, 2.30, 2.31), True),
        ((2.3, 1.2, 0.3, 2.31, 2.30), False),
        ((2.3, 1.2, 0.3, 2.31, 2.30, 2.31, 2.30), False),
        ((2.3, 1.2, 0.3, 2.31, 2.1, 2.31), False),
        ((2.3, 2.31, 2.30, 2.30, 2.31), False),
        ((2.3, 0.3, None, 2.31, None, 2.30, 2.31), True),
        ((0.3,), False),
        ((), False),
    ],
)
def test_three_rounds_at_chance_after_better_ones_are_said_once(losses: tuple[float | None, ...], says: bool) -> None:
    assert is_back_at_chance(rounds(*losses), 10) is says


def test_the_sentence_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    warn_at_chance(rounds(0.3, CHANCE, CHANCE, CHANCE), 10)
    assert "--client-learning-rate" in caplog.text
