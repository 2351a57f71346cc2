"""What commands print: whole lines, foreign text escaped, and nobody hurt where nobody reads. The only place that writes to the standard streams."""

from __future__ import annotations

import os
import sys
from typing import Any

from heron_common.errors import HeronError, StorageError
from heron_common.exit_codes import ExitCode, exit_code_of
from heron_common.terminal.foreign_text import printable


def is_terminal() -> bool:
    """Return whether standard error is a terminal, so that live progress makes sense."""
    return sys.stderr is not None and sys.stderr.isatty()


def announce(sentence: str) -> None:
    """Say on standard error what takes a while, but only to somebody who sits before it: it is no line of a log."""
    if is_terminal():
        write_text(sys.stderr, f"{printable(sentence)}\n")


def report_progress(sentence: str) -> None:
    """Say on standard error how far a command of minutes is, so that standard output holds its results alone."""
    write_text(sys.stderr, f"{printable(sentence)}\n")


def say(*lines: object) -> None:
    """Print each argument as one line on standard output, at once.

    Raises:
        StorageError: it is a file, and its disk is full.

    """
    write_text(sys.stdout, "".join(f"{printable(line)}\n" for line in lines))


def refuse(program: str, error: HeronError) -> ExitCode:
    """Say on standard error why a command ends, a line for each mistake, and return its exit code."""
    write_text(sys.stderr, "".join(f"{printable(f'{program}: {sentence}')}\n" for sentence in error.sentences))
    return exit_code_of(error)


def write_text(stream: Any, text: str) -> None:
    """Write to a standard stream and flush it; from the moment when its reader has gone, what is written goes nowhere.

    Raises:
        StorageError: it cannot be written for another reason.

    """
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        # A terminal that knows fewer letters than the text has is no reason to end.
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        discard_stream(stream)
    except OSError as exc:
        discard_stream(stream)
        if stream is not sys.stderr:
            raise StorageError(f"standard output cannot be written ({exc.strerror or exc}): free some space or send it elsewhere") from exc


def discard_stream(stream: Any) -> None:
    """Let a standard stream go nowhere, so that what is left in its buffer raises nothing when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
