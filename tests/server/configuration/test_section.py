"""Sections that are made of the options that values declare: same names, bounds and defaults, and the value comes out again."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from heron_common.options import option, option_fields
from heron_server.configuration.config import RoundsSection, TrainerSection
from heron_server.configuration.gates_section import GatesSection
from heron_server.configuration.options import read_options
from heron_server.configuration.section import section_of, value_of
from heron_server.rounds.state import RoundRules
from heron_server.training.early_end import EndRules
from heron_server.training.gates import GateSettings
from heron_server.training.trainer import TrainerSettings
from tests.server.running_server import SOURCE


@dataclass(frozen=True)
class Settings:
    needed: int = field(metadata=option("a number", at_least=1, at_most=3))
    rate: float = field(default=0.5, metadata=option("a rate", name="learning_rate", above=0, below=1))
    hidden: str = "not an option"


def test_a_section_has_the_bounds_and_defaults_that_a_value_declares() -> None:
    section = section_of(Settings)
    assert value_of(section(needed=2), Settings) == Settings(2)
    assert value_of(section(needed=3, learning_rate=0.25), Settings, hidden="x") == Settings(3, 0.25, "x")
    for wrong in (
        {},
        {"needed": 0},
        {"needed": 4},
        *({"needed": 1, "learning_rate": rate} for rate in (0, 1)),
        {"needed": 1, "hidden": "x"},
    ):
        with pytest.raises(ValidationError):
            section(**wrong)


def test_what_replaces_something_is_unset_and_bounded_all_the_same() -> None:
    section = section_of(Settings, overrides=True)
    assert section().model_dump() == {"needed": None, "learning_rate": None}
    with pytest.raises(ValidationError):
        section(needed=4)


@pytest.mark.parametrize(
    ("section", "kind", "more"),
    [
        (RoundsSection, RoundRules, {"num_clients": 3, "min_updates": 2, "num_rounds": 4, "run_seed": 5}),
        (RoundsSection, EndRules, {}),
        (TrainerSection, TrainerSettings, {}),
        (GatesSection, GateSettings, {}),
    ],
)
def test_every_option_reaches_the_field_that_declares_it(section: Any, kind: Any, more: dict[str, int]) -> None:
    default = kind(**more)
    assert value_of(section(), kind, **more) == default
    for name, declared in option_fields(kind).items():
        before = getattr(default, declared.name)
        members = {
            "server_optimiser": "sgd",
            "precision": "bf16",
            "device": "cpu",
            "without_quorum": "skip",
            "participation": 0.5,
            "server_momentum": 0.5,
            "stop_when": "seconds>1",
            "patience_rounds": 3,
        }
        other = members.get(declared.name, before + 1 if isinstance(before, int | float) else None)
        assert value_of(section(**{name: other}), kind, **more) == dataclasses.replace(default, **{declared.name: other}), name


@dataclass(frozen=True)
class Switched:
    is_relative: bool = field(default=True, metadata=option("a switch that a preset may have on"))


@pytest.mark.parametrize(
    ("words", "value"), [([], None), (["--is-relative"], True), (["--is-relative", "no"], False), (["--is-relative=no"], False)]
)
def test_a_switch_of_a_preset_can_be_set_and_unset(words: list[str], value: bool | None) -> None:
    class Config(BaseModel):
        plan: section_of(Switched, overrides=True)  # type: ignore[valid-type]

    assert read_options(Config, SOURCE, arguments=words, environment={}).plan.is_relative is value
