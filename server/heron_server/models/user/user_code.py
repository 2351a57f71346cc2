"""Callables of the user's own, named python:MODULE:CALLABLE, and what options they are called with."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from heron_common.errors import ConfigurationError
from heron_server.models.user.reasons import reason_of

PREFIX = "python:"


def load_callable(name: str) -> Callable[..., Any]:
    """Import what `python:package.module:callable` names; the current directory comes first, as with `python -m`.

    Raises:
        ConfigurationError: the name is not of this form, or there is no such callable; the sentence says which part is wrong.

    """
    module_name, colon, attribute = name.removeprefix(PREFIX).partition(":")
    if not name.startswith(PREFIX) or not colon or not module_name or not attribute:
        raise ConfigurationError(f"a callable of your own is written python:MODULE:CALLABLE, like python:my_models:build, not {name!r}")
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        where = "there is no such module in this directory or among the installed packages"
        raise ConfigurationError(f"{name!r} cannot be imported: no module named {exc.name!r}, {where}") from exc
    except Exception as exc:
        raise ConfigurationError(f"{name!r} cannot be imported: {module_name} {reason_of(exc)}") from exc
    for part in attribute.split("."):
        if not hasattr(value, part):
            there = sorted(key for key, item in vars(value).items() if callable(item) and not key.startswith("_"))
            raise ConfigurationError(f"{name!r} does not exist: {module_name} has no {part!r}, but {', '.join(there) or 'no callables'}")
        value = getattr(value, part)
    if not callable(value):
        raise ConfigurationError(f"{name!r} is a {type(value).__name__}: a callable that returns a torch module was expected")
    called: Callable[..., Any] = value
    return called


def call_with_options(name: str, options: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
    """Call what `name` names with the options, and with each offered value that its signature has and the options do not.

    Raises:
        ConfigurationError: it does not exist, takes no such options, or fails.

    """
    function = load_callable(name)
    parameters = inspect.signature(function).parameters
    arguments = {key: value for key, value in offered.items() if key in parameters} | {k: _value(v) for k, v in options.items()}
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as exc:
        raise ConfigurationError(f"{name!r} cannot be called: {exc}; its parameters are {', '.join(parameters) or 'none'}") from exc
    try:
        return function(**arguments)
    except Exception as exc:
        raise ConfigurationError(f"{name!r} was called with {arguments}, but {reason_of(exc)}") from exc


def _value(word: object) -> object:
    """Read a word of the command line: numbers, true, false and none as what they say, a list by its parts, anything else as text."""
    if isinstance(word, list):
        return [_value(part) for part in word]
    if not isinstance(word, str):
        return word
    named = {"true": True, "false": False, "none": None}
    if word.lower() in named:
        return named[word.lower()]
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return value if isinstance(value, int | float) else word
