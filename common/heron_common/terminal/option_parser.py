"""A reader of command lines that names all mistakes at once, an unknown option with the one that may have been meant."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NoReturn

from heron_common.errors import ConfigurationError
from heron_common.terminal.output import say, write_text
from heron_common.terminal.spelling import did_you_mean

_ADDRESS = re.compile(r"(\[[^\]/\s]+\]|[^\[\]:/\s]+):([0-9]{1,5})")

HELP_FLAGS = frozenset({"-h", "--help", "--help-all", "--version"})
"""Whoever gives one of these wants to read, and nothing else."""


class _Help(argparse.Action):
    """Prints the help, of everything or of what is common, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        """Do so."""
        assert isinstance(parser, OptionParser)
        say(*parser.help_of(everything="--help-all" in self.option_strings).splitlines())
        parser.exit()


_NUMBER = re.compile(r"-\d+(\.\d*)?|-\.\d+")

_WRONG = object()
"""What stands for a value that could not be read; nobody sees it, for the mistake is raised."""


class OptionParser(argparse.ArgumentParser):
    """Raises ConfigurationError where argparse would print its usage and exit; flags are not abbreviated."""

    def __init__(self, *arguments: Any, rare: Collection[str] = (), **named: Any) -> None:
        """`rare` are flags that `--help` leaves to `--help-all`; without any there is no such difference."""
        shown = {"add_help": False, "usage": "%(prog)s [OPTION ...]"} if rare else {}
        super().__init__(*arguments, **{"allow_abbrev": False, **shown, **named})
        self._mistakes: list[str] = []
        self._unknown_flags: list[str] = []
        self._rare = frozenset(rare)
        if rare:
            self.add_argument("-h", "--help", action=_Help, nargs=0, help="show the common options and exit")
            self.add_argument("--help-all", action=_Help, nargs=0, help="show every option and exit")

    def help_of(self, everything: bool) -> str:
        """Return the help of the common options, or of all."""
        rare = [action for action in self._actions if not everything and self._rare.intersection(action.option_strings)]
        kept, epilog = [action.help for action in rare], self.epilog
        if not everything:
            self.epilog = (
                f"These are the common options. --help-all shows {len(rare)} more, where else options may be given, and the exit codes."
            )
        for action in rare:
            action.help = argparse.SUPPRESS
        try:
            return self.format_help()
        finally:
            self.epilog = epilog
            for action, words in zip(rare, kept, strict=True):
                action.help = words

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
        words, self._unknown_flags = self._without_unknown(sys.argv[1:] if words is None else list(words))
        for action in needed:
            # argparse would name what is missing and nothing else.
            action.required = False
        try:
            found, left = super().parse_known_args(words, namespace)
        finally:
            for action in needed:
                action.required = True
        missing = [action for action in needed if getattr(found, action.dest, None) is None and self._is_judged(action)]
        sentences = [f"{_name(action)} is missing: {_meaning(action)}" for action in missing]
        return found, [*self._mistakes, *self._unknown_flags, *self._unexpected(left), *sentences]

    def _without_unknown(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Return the words without unknown flags and what may be their values, and a sentence for each; a verb's words are for its own reader."""
        if self._subparsers is not None:
            return words, []
        kept: list[str] = []
        unknown: list[str] = []
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        follows = False
        for place, word in enumerate(words):
            flag = word.partition("=")[0]
            if word == "--":
                return kept + words[place:], unknown
            if word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word) and flag not in self._option_string_actions:
                unknown.append(f"unknown option {flag}{did_you_mean(flag, known)}")
                follows = "=" not in word
            elif not follows or word.startswith("-"):
                kept.append(word)
                follows = False
            else:
                follows = False
        return kept, unknown

    def _is_judged(self, action: argparse.Action) -> bool:
        """Words without a flag mean little beside an unknown one, which may have wanted them."""
        return bool(action.option_strings) or not self._unknown_flags

    def _unexpected(self, words: Sequence[str]) -> Iterator[str]:
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        for word in words:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                yield f"unknown option {flag}{did_you_mean(flag, flags)}"
            else:
                yield f"unexpected word {word!r}"

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as exc:
            if self._is_judged(action):
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
