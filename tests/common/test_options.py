"""Options that fields declare: each goes to its own field, however deep, and the rest stays as it was."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import pytest

from heron_common.algorithm.algorithm import Algorithm, Alignment, ServerSchedule
from heron_common.algorithm.plan import ClientOptimiser, Plan
from heron_common.algorithm.presets import PRESETS
from heron_common.options import option, option_fields, option_of, with_options


@dataclass(frozen=True)
class Inner:
    width: int = field(default=1, metadata=option("how wide", name="inner_width", at_least=1))
    secret: int = 2


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    width: int = field(default=3, metadata=option("how wide around", below=9))


def test_an_option_changes_the_field_that_declares_it_and_no_other_of_that_name() -> None:
    assert with_options(Outer(), {"inner_width": 7}) == Outer(Inner(7), 3)
    assert with_options(Outer(), {"width": 7}) == Outer(Inner(1), 7)
    assert with_options(Outer(), {}) == Outer()
    assert list(option_fields(Inner)) == ["inner_width"] and list(option_fields(Outer)) == ["width"]
    assert (option_of(option_fields(Outer)["width"]).below, option_of(option_fields(Inner)["inner_width"]).at_least) == (9, 1)


def test_what_is_no_option_cannot_be_given() -> None:
    assert with_options(Outer(), {"secret": 9}) == Outer()


def test_names_of_an_algorithms_options_are_unique() -> None:
    names = [name for kind in (Plan, Algorithm, Alignment) for name in option_fields(kind)]
    assert len(names) == len(set(names))


def test_options_reach_plan_algorithm_and_alignment() -> None:
    given = {"client_optimiser": ClientOptimiser.ADAM, "server_schedule": ServerSchedule.LOCKSTEP, "alignment_epochs": 3}
    row = PRESETS["fsl-sage"]
    expected = dataclasses.replace(
        row,
        plan=dataclasses.replace(row.plan, optimiser=ClientOptimiser.ADAM),
        schedule=ServerSchedule.LOCKSTEP,
        alignment=dataclasses.replace(row.alignment, epochs=3),
    )
    assert row.with_options(given) == expected


@pytest.mark.parametrize("name", ["heron-paper"])
def test_a_client_learning_rate_that_was_given_is_taken_as_it_is(name: str) -> None:
    assert PRESETS[name].rate_at_most(10**6) < 1
    assert PRESETS[name].with_options({"client_learning_rate": 9.0}).rate_at_most(10**6) == math.inf
    assert PRESETS[name].with_options({"alignment_learning_rate": 9.0}).rate_at_most(10**6) < 1
