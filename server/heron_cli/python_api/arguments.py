"""What a call hands over, as the options that a command would have been told, and the objects that stand for names in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from heron_cli.python_api.data import GivenData, given_data, specification_of_data
from heron_cli.python_api.mistakes import Mistakes
from heron_cli.python_api.modules import check_cut, model_name
from heron_common.errors import ConfigurationError
from heron_server.objects import Objects

_UNKNOWN = "1:2"
"""Stands for the form of data that are wrong themselves, so that their mistake is told once."""

_OF_COMMANDS = {
    "log_level": "set the level of the logger heron_server",
    "log_format": "give the logger heron_server a handler",
    "plot": "use run.plot().save(path)",
}
"""Options that say what a command prints and draws, and what a program does instead."""

_STAY = ("model", "data", "run_dir")


def read_call(
    model: nn.Module | str, arguments: Mapping[str, Any], *, data: Sequence[str], mistakes: Mistakes
) -> tuple[dict[str, Any], Objects]:
    """Return options by name and the objects behind them; `data` are the arguments that take data, the one first that says what samples look like."""
    module = model if isinstance(model, nn.Module) else None
    options = {name: value for name, value in arguments.items() if name not in data and name != "on_round"}
    for option in sorted(_OF_COMMANDS.keys() & options.keys()):
        with mistakes.collected():
            raise ConfigurationError(f"{option} is an option of commands alone: leave it out, and {_OF_COMMANDS[option]}")
    with mistakes.collected():
        options["model"] = model_name(model)
        check_cut(model, arguments["cut"])
    given: dict[str, GivenData] = {}
    for argument in data:
        if arguments[argument] is not None:
            with mistakes.collected():
                given[argument] = given_data(argument, arguments[argument])
    opened = {argument: one.source for argument, one in given.items() if one.source is not None}
    if options["data_spec"] is None and arguments[data[0]] is not None and not isinstance(arguments[data[0]], str):
        options["data_spec"] = _UNKNOWN
        if data[0] in opened:
            with mistakes.collected():
                options["data_spec"] = specification_of_data(data[0], opened[data[0]], module)
    options |= {argument: one.name for argument, one in given.items()}
    return options, Objects(module, {one.name: one.source for one in given.values() if one.source is not None})


def resumed(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call that goes on with the run of another.

    Raises:
        ConfigurationError: what cannot change is among the changes.

    """
    if fixed := [name for name in _STAY if name in changes]:
        raise ConfigurationError(f"resume goes on with the same model, data and run_dir, so it takes no {', '.join(fixed)}: leave it out")
    return {**arguments, **changes, "resume": True}
