"""Sentences for a Python program, which has arguments where a command line has flags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from heron_common.errors import HeronError, RefusedError

_FLAG = re.compile(r"--([a-z][a-z0-9-]*)")


def argument_names(sentence: str) -> str:
    """Return a sentence with the names of arguments in the place of flags: `--eval-data` becomes `eval_data`."""
    return _FLAG.sub(lambda found: found[1].replace("-", "_"), sentence)


@contextmanager
def spoken_in_python() -> Iterator[None]:
    """Let errors from inside name arguments; a server's refusal is its own."""
    try:
        yield
    except RefusedError:
        raise
    except HeronError as exc:
        exc.args = tuple(argument_names(sentence) for sentence in exc.sentences)
        raise
