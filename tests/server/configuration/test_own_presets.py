"""Presets of the operator's own: a table of a file does what the same options do, and a wrong one is a sentence that says what was meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from heron_cli.simulation.configuration import read_simulation, simulation_config
from heron_common.algorithm.algorithm import Algorithm, ServerSchedule
from heron_common.algorithm.presets import preset
from heron_common.errors import ConfigurationError
from heron_server.configuration.config import MAY_CHANGE_ON_RESUME, ServerConfig
from heron_server.configuration.options import read_options
from heron_server.storage.run_directory import RunDirectory
from tests.server.running_server import SOURCE

MINE = """
[presets.mine]
base = "fsl-sage"
local_steps = 3
client_learning_rate = 0.5
server_schedule = "lockstep"
alignment_epochs = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "options.toml"
    path.write_text(MINE)
    return path


def read(file: Path, *words: str) -> ServerConfig:
    return read_options(ServerConfig, SOURCE, arguments=["--config", str(file), *words], environment={})


def refusal(file: Path, text: str, *words: str) -> tuple[str, ...]:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read(file, *words)
    return tuple(sentence.removeprefix(f"{file}: ") for sentence in caught.value.sentences)


def without_name(algorithm: Algorithm) -> Algorithm:
    return dataclasses.replace(algorithm, plan=dataclasses.replace(algorithm.plan, preset=""))


def test_a_table_is_the_same_as_its_options_but_for_the_name(file: Path) -> None:
    words = ("--local-steps", "3", "--client-learning-rate", "0.5", "--server-schedule", "lockstep", "--alignment-epochs", "2")
    mine, spelt_out = read(file, "--preset", "mine").algorithm, read(file, "--preset", "fsl-sage", *words).algorithm
    assert (mine.plan.preset, spelt_out.plan.preset) == ("mine", "fsl-sage")
    assert without_name(mine) == without_name(spelt_out) != without_name(preset("fsl-sage"))


def test_an_option_wins_over_the_table(file: Path) -> None:
    assert read(file, "--preset", "mine", "--local-steps", "7").algorithm.plan.local_steps == 7
    assert read(file, "--preset", "mine").algorithm.plan.local_steps == 3


def test_a_preset_that_nobody_chose_changes_nothing(file: Path) -> None:
    assert read(file).algorithm == preset("heron")
    assert read(file).identity() == read_options(ServerConfig, SOURCE, arguments=[], environment={}).identity()


def test_a_simulation_takes_it_from_a_file_and_by_name(file: Path) -> None:
    table = {"base": "fsl-sage", "local_steps": 3, "client_learning_rate": 0.5, "server_schedule": "lockstep", "alignment_epochs": 2}
    from_file = read_simulation(["--config", str(file), "--preset", "mine", "--run-dir", "x"], {})
    assert from_file == simulation_config(preset="mine", presets={"mine": table}, run_dir=Path("x"))
    arrives = simulation_config(preset="mine", presets={"mine": {"base": "heron"}})
    assert arrives.algorithm.schedule is ServerSchedule.LOCKSTEP, "what arrives in one process comes in one order"


def test_a_run_is_resumed_with_the_table_that_it_began_with(file: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    try:
        directory.record(directory.identify(read(file, "--preset", "mine").identity(), False, MAY_CHANGE_ON_RESUME))
        directory.identify(read(file, "--preset", "mine").identity(), True, MAY_CHANGE_ON_RESUME)
        file.write_text(MINE.replace("= 3", "= 4"))
        with pytest.raises(ConfigurationError, match=r"but \[presets\.mine\] was .*'local_steps': 3.* and is now .*'local_steps': 4"):
            directory.identify(read(file, "--preset", "mine").identity(), True, MAY_CHANGE_ON_RESUME)
    finally:
        directory.close()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (MINE.replace("local_steps", "local_step"), ["unknown option 'local_step' in [presets.mine]: did you mean local_steps?"]),
        (MINE + "rounds = 3\n", ["unknown option 'rounds' in [presets.mine]: it takes base and options of [plan]"]),
        (MINE.replace("= 3", "= 0"), ["local_steps in [presets.mine]: Input should be greater than or equal to 1, not 0"]),
        (MINE.replace("fsl-sage", "fsl"), ["base in [presets.mine]: unknown preset 'fsl': choose one of heron, heron-paper"]),
        (MINE.replace("base", "# base"), ["base is missing in [presets.mine]: name the preset that it begins with, one of heron,"]),
        (MINE.replace("mine", "frozen"), ["[presets.frozen] would hide the preset 'frozen': give it another name"]),
        (MINE.replace("mine", "'my own'"), ["[presets.my own] is no name of a preset: give up to 64 of a-z, 0-9, - and _"]),
        ("[presets]\nlocal_steps = 3\n", ["local_steps in [presets] is no table: write [presets.NAME], and local_steps below it"]),
        ("presets = 3\n", ["presets is no table: write [presets.NAME], and below it base and options of [plan]"]),
        (MINE.replace("presets", "preset"), ["unknown table [preset]: did you mean presets?; tables are run, rounds, plan"]),
        (
            MINE.replace("= 3", "= 0").replace("alignment_epochs", "alignment_epoch"),
            ["local_steps in [presets.mine]: Input", "unknown option 'alignment_epoch' in [presets.mine]: did you mean alignment_epochs?"],
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_named_once_with_what_was_meant(file: Path, text: str, sentences: list[str]) -> None:
    found = refusal(file, text)
    assert [one[: len(other)] for one, other in zip(found, sentences, strict=True)] == sentences


def test_a_wrong_table_that_was_chosen_is_one_mistake(file: Path) -> None:
    (sentence,) = refusal(file, MINE.replace("= 3", "= 0"), "--preset", "mine")
    assert sentence.startswith("local_steps in [presets.mine]: ")


def test_an_unknown_preset_is_told_of_ones_own(file: Path) -> None:
    (sentence,) = refusal(file, MINE, "--preset", "min")
    assert sentence.startswith("--preset: unknown preset 'min': choose one of heron, ") and sentence.endswith(", mine: did you mean mine?")


@pytest.mark.parametrize("given", [{"roudns": 3}, {"preset": "herom"}, {"rounds": 0, "batch_size": "many"}])
def test_a_simulation_by_name_names_every_mistake(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        simulation_config(**given)
    assert len(caught.value.sentences) == len(given)
    assert "did you mean rounds?" in str(caught.value) or all(f"--{name.replace('_', '-')}" in str(caught.value) for name in given)


def test_values_and_their_texts_make_the_same_simulation() -> None:
    values = simulation_config(rounds=3, participation=0.5, server_schedule=ServerSchedule.SEQUENTIAL, run_dir=Path("x"), resume=True)
    words = ["--rounds=3", "--participation=0.5", "--server-schedule=sequential", "--run-dir=x", "--resume"]
    assert values == read_simulation(words, {})
    # A command keeps its run under a name with the time in it, where none is given.
    assert simulation_config(summary=None, rounds=None, run_dir=Path("x")) == read_simulation(["--run-dir=x"], {})
