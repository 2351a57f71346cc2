"""Code that a run directory names is run only if somebody here answers for it: a directory may come from anybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heron_common.errors import ConfigurationError
from heron_server.models.user.user_code import PREFIX


@dataclass(frozen=True)
class Vouched:
    """What an operator repeats of a run's options, or that they trust whatever code its directory names."""

    model: str | None = None
    model_options: Mapping[str, Any] | None = None
    trusts_code: bool = False

    def check(self, run_dir: Path, model: str, model_options: Mapping[str, Any]) -> None:
        """Refuse what differs from what was repeated, and code that nobody repeated.

        Raises:
            ConfigurationError: there is such; all mistakes at once.

        """
        mistakes = []
        for flag, given, recorded in (("--model", self.model, model), ("--model-options", self.model_options, dict(model_options))):
            if given is not None and given != recorded:
                mistakes.append(f"{flag} is {given!r}, but the run in {run_dir} has {recorded!r}: give that, or leave {flag} out")
            code = sorted(set(_code_in(recorded)))
            if code and given is None and not self.trusts_code:
                mistakes.append(
                    f"{run_dir} names code to run, {', '.join(map(repr, code))}, and whoever made the directory chose it: "
                    f"if it is yours, repeat {flag} as it was given to the run, otherwise --trust-run-code runs it all the same"
                )
        if mistakes:
            raise ConfigurationError(*mistakes)


def _code_in(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.strip().startswith(PREFIX):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _code_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _code_in(item)
