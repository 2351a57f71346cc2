"""A reader of command lines that names all mistakes at once, an unknown option with the one that may have been meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from heron_common.errors import ConfigurationError
from heron_common.terminal.output import write_text
from heron_common.terminal.spelling import did_you_mean

_ADDRESS = re.compile(r"(\[[^\]/\s]+\]|[^\[\]:/\s]+):([0-9]{1,5})")

HELP_FLAGS = frozenset({"-h", "--help", "--help-all", "--version"})
"""Whoever gives one of these wants to read, and nothing else."""

_WRONG = object()
"""What stands for a value that could not be read; nobody sees it, for the mistake is raised."""


class OptionParser(argparse.ArgumentParser):
    """Raises ConfigurationError where argparse would print its usage and exit; flags are not abbreviated."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **named})
        self._mistakes: list[str] = []

    def read(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return what was given, and a sentence for each mistake.

        Raises:
            ConfigurationError: what was given cannot be told apart.

        """
        self._mistakes = []
        return self._read(words, None)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read a command, or the part of it that is a verb's."""
        self._mistakes = []
        found, mistakes = self._read(args, namespace)
        if mistakes:
            raise ConfigurationError(*mistakes)
        return found, []

    def error(self, message: str) -> NoReturn:
        """End the reading with what is known by then."""
        raise ConfigurationError(*self._mistakes, message.removeprefix("argument "))

    def _read(self, words: Any, namespace: Any) -> tuple[argparse.Namespace, list[str]]:
        needed = [action for action in self._actions if action.required]
        for action in needed:
            # argparse would name what is missing and nothing else.
            action.required = False
        try:
            found, left = super().parse_known_args(words, namespace)
        finally:
            for action in needed:
                action.required = True
        missing = [f"{_name(action)} is missing: {_meaning(action)}" for action in needed if getattr(found, action.dest, None) is None]
        return found, [*self._mistakes, *self._unknown(left), *missing]

    def _unknown(self, words: Sequence[str]) -> Iterator[str]:
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        is_value = False
        for word in words:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                yield f"unknown option {flag}{did_you_mean(flag, flags)}"
            elif not is_value:
                yield f"unexpected word {word!r}"
            is_value = word.startswith("-") and "=" not in word

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as exc:
            self._mistakes.append(f"{_name(action)}: {exc.message}")
            return _WRONG

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value is _WRONG or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        sentence = f"{_name(action)} is one of {', '.join(choices)}, not {value!r}{did_you_mean(str(value), choices)}"
        if action.option_strings:
            self._mistakes.append(sentence)
        else:
            # What follows is this word's own.
            raise ConfigurationError(*self._mistakes, sentence)

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            matched: int = super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError:
            self._mistakes.append(f"{_name(action)} has no value: {_meaning(action)}")
            return 0
        return matched

    def _print_message(self, message: str, file: Any = None) -> None:
        write_text(file, message)


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not smaller."""

    def read(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"a whole number of at least {least} was expected, not {word!r}")
        return value

    return read


def above_zero(word: str) -> float:
    """Read a number above 0."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0 was expected, not {word!r}")
    return value


def host_and_port(word: str) -> str:
    """Read HOST:PORT and return it as it was written."""
    found = _ADDRESS.fullmatch(word)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise argparse.ArgumentTypeError(f"host:port like 127.0.0.1:9464 was expected, not {word!r}")
    return word


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


def _meaning(action: argparse.Action) -> str:
    if action.choices is not None and not action.option_strings:
        return f"one of {', '.join(map(str, action.choices))} was expected"
    return f"give {action.help or 'it'}"
