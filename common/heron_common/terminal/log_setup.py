"""Structured log lines on standard error: time, level, event, key=value pairs."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from heron_common.terminal.foreign_text import printable

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class StructuredFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO heron_server: round closed round_index=3 clients=4`; values that need it are quoted as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {record.name.split('.')[0]}: {printable(record.getMessage())}"
        pairs = "".join(f" {key}={_value(value)}" for key, value in vars(record).items() if key not in _RESERVED)
        return text + pairs + (_indented(self.formatException(record.exc_info)) if record.exc_info else "")


def _indented(trace: str) -> str:
    """An error's own text has as many lines as somebody chose: none of them may pass for a line of the log."""
    return "".join(f"\n  {printable(line)}" for line in trace.split("\n"))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text and text.isprintable() and not any(c in text for c in ' "=') else json.dumps(text)


def set_up_logging(level: str = "info", stream: Any = None) -> logging.Handler:
    """Send all HERON logs at `level` and above to `stream` (standard error by default); safe to repeat, the last call wins."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(StructuredFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, StructuredFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("heron_server", "heron_client", "heron_common", "heron_cli"):
        logging.getLogger(name).setLevel(level.upper())
    return handler


def redirect_logs(stream: Any) -> None:
    """Send what `set_up_logging` set up to another stream."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.formatter, StructuredFormatter):
            if getattr(handler.stream, "closed", False):
                handler.stream = stream  # setStream flushes the old stream first, which a closed one answers with an error
            else:
                handler.setStream(stream)
