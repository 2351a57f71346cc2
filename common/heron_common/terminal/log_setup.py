"""Log lines on standard error: an event and its fields, as `key=value` for machines or as a sentence for people."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from heron_common.terminal.figures import FRONT_WEIGHTS, human_bytes, human_number, human_seconds, human_share
from heron_common.terminal.foreign_text import printable
from heron_common.terminal.output import is_terminal

TOLD = "told"
"""The field of a record whose text people read instead of event and fields, where these make no sentence."""

LOG_FORMATS = ("auto", "human", "key-value")
"""What `--log-format` takes."""

LOG_FORMAT_HELP = "lines for people (human) or key=value with indices as stored (key-value); auto: human on a terminal, key-value elsewhere"

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", TOLD}


class LogFormatter(logging.Formatter):
    """What `set_up_logging` sets up; handlers of others are left alone."""


class StructuredFormatter(LogFormatter):
    """`2026-01-31T12:00:00.000Z INFO heron_server: round closed round_index=3 clients=4`; values that need it are quoted as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {record.name.split('.')[0]}: {printable(record.getMessage())}"
        pairs = "".join(f" {key}={_value(value)}" for key, value in _fields(record).items())
        return text + pairs + _trace(self, record)


class HumanFormatter(LogFormatter):
    """`12:00:00  round closed: round 4, clients 4, 2.5 s`; the level only where something is wrong, rounds counted from 1."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        told = getattr(record, TOLD, None)
        sentence = record.getMessage() if told is None else str(told)
        shown = "" if told is not None else ", ".join(_said(key, value) for key, value in _fields(record).items())
        return f"{stamp}  {level}{printable(f'{sentence}: {shown}' if shown else sentence)}{_trace(self, record)}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _RESERVED}


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """An error's own text has as many lines as somebody chose: none of them may pass for a line of the log."""
    if not record.exc_info:
        return ""
    return "".join(f"\n  {printable(line)}" for line in formatter.formatException(record.exc_info).split("\n"))


def _value(value: Any) -> str:
    if isinstance(value, float):
        # %g would write a million with an exponent.
        return f"{value:.0f}" if 1e6 <= abs(value) < 1e15 else f"{value:.6g}"
    text = str(value)
    return text if text and text.isprintable() and not any(c in text for c in ' "=') else json.dumps(text)


def _said(key: str, value: Any) -> str:
    """Return a field for people; the ending of its name is its unit."""
    words = _NAMES.get(key, key.replace("_", " "))
    if key == "reason":
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{words} {value}"
    if key in _INDICES:
        # Stored from 0; people count from 1.
        return f"{words.removesuffix(' index')} {value + 1}"
    if key == "pid":
        return f"{words} {value}"
    for ending, shown in _UNITS.items():
        if words == ending or words.endswith(f" {ending}"):
            return f"{words.removesuffix('seconds').removesuffix('bytes').rstrip()} {shown(value)}".lstrip()
    return f"{words} {human_number(value)}"


_NAMES = {"client_model_weights": FRONT_WEIGHTS}
_INDICES = ("round_index", "attempt", "local_step")
_UNITS = {"seconds": human_seconds, "bytes": human_bytes, "accuracy": human_share}


def set_up_logging(level: str = "info", stream: Any = None, log_format: str = "auto") -> logging.Handler:
    """Send all HERON logs at `level` and above to `stream` (standard error by default); safe to repeat, the last call wins."""
    handler = logging.StreamHandler(stream or sys.stderr)
    for_people = log_format == "human" or (log_format == "auto" and stream is None and is_terminal())
    handler.setFormatter(HumanFormatter() if for_people else StructuredFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, LogFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("heron_server", "heron_client", "heron_common", "heron_cli"):
        logging.getLogger(name).setLevel(level.upper())
    return handler


def redirect_logs(stream: Any) -> None:
    """Send what `set_up_logging` set up to another stream."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.formatter, LogFormatter):
            if getattr(handler.stream, "closed", False):
                handler.stream = stream  # setStream flushes the old stream first, which a closed one answers with an error
            else:
                handler.setStream(stream)
