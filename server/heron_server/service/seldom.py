"""Warnings that a stranger can cause as often as he likes: one line a minute of each kind, with how often it happened since."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

LOG_INTERVAL_SECONDS = 60.0


class SeldomWarnings:
    """Says the first of its kind at once and adds up the others; thread-safe. Kinds are sentences of our own, so that there are few."""

    def __init__(self, log: logging.Logger, now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._now = now
        self._lock = threading.Lock()
        self._unsaid: Counter[str] = Counter()
        self._said_at: dict[str, float] = {}

    def warn(self, sentence: str, **fields: object) -> None:
        """Log `sentence` unless that was done within the last minute; `times` counts what the line stands for."""
        now = self._now()
        with self._lock:
            self._unsaid[sentence] += 1
            last = self._said_at.get(sentence)
            if last is not None and now - last < LOG_INTERVAL_SECONDS:
                return
            self._said_at[sentence] = now
            times = self._unsaid.pop(sentence)
        self._log.warning(sentence, extra={**fields, "times": times})
