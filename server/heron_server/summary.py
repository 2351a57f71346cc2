"""`summary.json`: what a run did, in one document that is replaced after every round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import onnxruntime

from heron_common.version import PROTOCOL_VERSION, VERSION
from heron_server.rounds.clients import ClientRecord

SUMMARY_VERSION = 3


@dataclass(frozen=True)
class RoundRecord:
    """One finished round."""

    round_index: int
    attempt: int
    cohort: int
    updates: int
    test_accuracy: float | None
    test_loss: float | None
    local_loss: float | None
    server_loss: float | None
    client_forward_passes: int
    client_forward_equivalents: float
    seconds: float
    test_perplexity: float | None = None


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = {name: version(name) for name in ("torch", "numpy", "onnx", "grpcio", "protobuf")}
    return {"heron": VERSION, "protocol": str(PROTOCOL_VERSION), "onnxruntime": onnxruntime.__version__, **names}


def client_table(records: Iterable[ClientRecord]) -> dict[str, dict[str, Any]]:
    """Return what each client did, by name."""
    return {
        record.name: {
            "examples": record.num_examples,
            "rounds_completed": record.rounds_completed,
            "peak_memory_bytes": record.peak_memory_bytes,
            "log_mismatches": record.log_mismatches,
            "bytes_up": dict(sorted(record.bytes_up.items())),
            "bytes_down": dict(sorted(record.bytes_down.items())),
        }
        for record in sorted(records, key=lambda r: r.name)
    }


def restore_clients(table: dict[str, dict[str, Any]], make: Any) -> None:
    """Take up the tallies of an earlier process of the same run; `make(name)` returns a record to fill."""
    for name, row in table.items():
        record: ClientRecord = make(name)
        record.num_examples = int(row["examples"])
        record.rounds_completed = int(row["rounds_completed"])
        record.peak_memory_bytes = int(row["peak_memory_bytes"])
        record.log_mismatches = int(row["log_mismatches"])
        record.bytes_up.update(row["bytes_up"])
        record.bytes_down.update(row["bytes_down"])


def round_rows(rounds: Iterable[RoundRecord]) -> list[dict[str, Any]]:
    """Return rounds as JSON objects."""
    return [asdict(record) for record in rounds]
