"""What a run adds up for its summary: where each client's time went, what the wire carried, and what became of uploads, members and attempts."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from heron_common.errors import StorageError
from heron_common.protocol.messages import LocalStatistics
from heron_server.rounds.clients import FORGOTTEN
from heron_server.rounds.jobs import CloseJob
from heron_server.storage.ledger import Ledger

log = logging.getLogger(__name__)

_SECONDS = ("compute_seconds", "upload_wait_seconds", "round_seconds")


class RunTallies:
    """Sums over the rounds that were closed; they survive in checkpoints. Times are what clients report: they are shown and decide nothing."""

    def __init__(self, client_table: Callable[[], dict[str, Any]], ledger: Ledger) -> None:
        self._client_table, self._ledger = client_table, ledger
        self._seconds: dict[str, dict[str, float]] = {}

    def close_round(self, job: CloseJob, round_seconds: float) -> dict[str, Any]:
        """Account for a round, and return its figures for its record: mean seconds of its clients, bytes of all clients since the run began."""
        spent = [_seconds_of(update.statistics) for update in job.updates]
        for update, (compute, wait) in zip(job.updates, spent, strict=True):
            self._add(update.client_id, (compute, wait, round_seconds))
        table = self._client_table()
        for name in [name for name in self._seconds if _is_forgotten(name, table)]:
            gone = self._seconds.pop(name)
            self._add(FORGOTTEN, tuple(gone[what] for what in _SECONDS))
        rows = table.values()
        count = max(1, len(spent))
        return {
            "compute_seconds": round(sum(compute for compute, _ in spent) / count, 3),
            "upload_wait_seconds": round(sum(wait for _, wait in spent) / count, 3),
            "bytes_up_so_far": sum(sum(row["bytes_up"].values()) for row in rows),
            "bytes_down_so_far": sum(sum(row["bytes_down"].values()) for row in rows),
        }

    def _add(self, client: str, spent: tuple[float, ...]) -> None:
        own = self._seconds.setdefault(client, dict.fromkeys(_SECONDS, 0.0))
        for name, seconds in zip(_SECONDS, spent, strict=True):
            own[name] = round(own[name] + seconds, 3)

    def state(self) -> dict[str, dict[str, float]]:
        """Return what a checkpoint keeps."""
        return {name: dict(own) for name, own in self._seconds.items()}

    def restore(self, state: dict[str, dict[str, float]] | None) -> None:
        """Go back to it; checkpoints of earlier versions have none."""
        # A sum that was infinite in an earlier version is null there.
        self._seconds = {name: {what: float(own.get(what) or 0.0) for what in _SECONDS} for name, own in (state or {}).items()}

    def summary(self) -> dict[str, Any]:
        """Return the summary's part; what the ledger knows is null while the disk refuses."""
        nothing = dict.fromkeys(_SECONDS, 0.0)
        table = self._client_table()
        clients = {name: {**row, **self._seconds.get(name, nothing)} for name, row in table.items()}
        ledger = self._ledger
        known: dict[str, Any] = {"uploads": None, "drops": None, "abandoned_attempts": None}
        try:
            known = {"uploads": asdict(ledger.balance()), "drops": _drops(ledger.drops(), table), "abandoned_attempts": ledger.abandoned()}
        except StorageError as exc:
            log.error(str(exc))
        return {**known, "clients": clients}


def _is_forgotten(client: str, table: dict[str, Any]) -> bool:
    return FORGOTTEN in table and client not in table


def _drops(by_reason: dict[str, dict[str, int]], table: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return how often clients were dropped, by reason and client; those of clients that were forgotten together."""
    counts: dict[str, Counter[str]] = {reason: Counter() for reason in by_reason}
    for reason, by_client in by_reason.items():
        for name, times in by_client.items():
            counts[reason][FORGOTTEN if _is_forgotten(name, table) else name] += times
    return {reason: dict(count) for reason, count in counts.items()}


def _seconds_of(statistics: LocalStatistics) -> tuple[float, float]:
    """Return the seconds that a client computed in its steps and that it waited for its uploads; nonsense counts as nothing."""
    step, wait = (
        seconds if math.isfinite(seconds) and seconds > 0 else 0.0 for seconds in (statistics.step_seconds, statistics.upload_wait_seconds)
    )
    return max(0.0, step - wait), wait
