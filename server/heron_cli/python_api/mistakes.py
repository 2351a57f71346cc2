"""All mistakes of a call at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from heron_common.errors import ConfigurationError, DataError, HeronError
from heron_common.terminal.argument_names import argument_names


class Mistakes:
    """What is wrong with a call, collected until everything was looked at."""

    def __init__(self) -> None:
        self._errors: list[HeronError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep an error of data or configuration instead of raising it."""
        try:
            yield
        except (ConfigurationError, DataError) as exc:
            self._errors.append(exc)

    def raise_if_any(self) -> None:
        """Raise one error with a sentence for each mistake: a DataError if nothing but data are wrong, else a ConfigurationError."""
        if not self._errors:
            return
        kind = DataError if all(isinstance(error, DataError) for error in self._errors) else ConfigurationError
        raise kind(*(argument_names(sentence) for error in self._errors for sentence in error.sentences))
