"""`summary.json`: what a run did, in one document that is replaced after every round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from importlib.metadata import version
from typing import Any

import onnxruntime

from heron_common.ids import RoundReference
from heron_common.terminal.figures import human_seconds
from heron_common.version import PROTOCOL_VERSION, VERSION
from heron_server.rounds.clients import FORGOTTEN, ClientRecord

SUMMARY_VERSION = 5

_LATELY = 10
"""Rounds by which the time is judged that is left: the first one may have waited for programs, and devices come and go."""


@dataclass(frozen=True)
class RoundRecord:
    """One finished round.

    `test_*` score the model after this round on --eval-data. `federated_*` score the model that this round started from on what clients held out.

    Attributes:
        federated_of_round: the round after which that model stood; -1 for the first weights, None if nothing was held out.
        federated_examples: how many held-out samples were scored; each cost its client one forward pass more than `client_forward_passes` says.
        federated_first_version, federated_last_version: server steps before the back that scored the first and the last of them. They differ under the
            schedule `arrival` only, where others may train meanwhile; a back per client is scored by its average, which stands all round.
        compute_seconds, upload_wait_seconds: means over the clients whose updates were taken, as they report them: in their steps without waits, and waiting for
            uploads and their answers. What is left of `seconds` is the server's work, the other clients, and weights on the wire.
        bytes_up_so_far, bytes_down_so_far: payload of all clients since the run began, as counted when the round was closed.

    """

    round_index: int
    attempt: int
    _: KW_ONLY
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
    federated_of_round: int | None = None
    federated_accuracy: float | None = None
    federated_loss: float | None = None
    federated_perplexity: float | None = None
    federated_examples: int = 0
    federated_first_version: int | None = None
    federated_last_version: int | None = None
    compute_seconds: float | None = None
    upload_wait_seconds: float | None = None
    bytes_up_so_far: int | None = None
    bytes_down_so_far: int | None = None

    def federated_figures(self) -> list[tuple[str, str]]:
        """Return name and value of each figure of the held-out samples, for people; none if nothing was held out."""
        return federated_figures(asdict(self))


def skipped_round(reference: RoundReference, num_members: int) -> RoundRecord:
    """Return the record of a round that ended without a quorum and is not repeated: no update, no figures, the weights as they were."""
    return RoundRecord(
        round_index=reference.round_index,
        attempt=reference.attempt,
        cohort=num_members,
        updates=0,
        test_accuracy=None,
        test_loss=None,
        local_loss=None,
        server_loss=None,
        client_forward_passes=0,
        client_forward_equivalents=0.0,
        seconds=0.0,
    )


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = {name: version(name) for name in ("torch", "numpy", "onnx", "grpcio", "protobuf")}
    return {"heron": VERSION, "protocol": str(PROTOCOL_VERSION), "onnxruntime": onnxruntime.__version__, **names}


def client_table(records: Iterable[ClientRecord]) -> dict[str, dict[str, Any]]:
    """Return what each client did, by name, and what the clients did together that departed too long ago to be kept apart."""
    return {
        record.name: {
            **({"clients": record.stands_for} if record.name == FORGOTTEN else {}),
            "examples": record.num_examples,
            "rounds_completed": record.rounds_completed,
            "peak_memory_bytes": record.peak_memory_bytes,
            "peak_anonymous_bytes": record.peak_anonymous_bytes,
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
        record.stands_for = int(row.get("clients", 1))
        record.num_examples = int(row["examples"])
        record.rounds_completed = int(row["rounds_completed"])
        record.peak_memory_bytes = int(row["peak_memory_bytes"])
        # Runs of earlier versions have no such figure.
        record.peak_anonymous_bytes = int(row.get("peak_anonymous_bytes", 0))
        record.log_mismatches = int(row["log_mismatches"])
        record.bytes_up.update(row["bytes_up"])
        record.bytes_down.update(row["bytes_down"])


def federated_figures(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of each figure of a round's held-out samples, for people; names say which model is meant."""
    if row.get("federated_of_round") is None:
        return []
    which = f"held-out {{}}, round {row['federated_of_round'] + 1}"
    forms = {"accuracy": "{:.2%}", "perplexity": "{:.2f}", "loss": "{:.4f}"}
    values = {name: row[f"federated_{name}"] for name in forms}
    return [(which.format(name), forms[name].format(value)) for name, value in values.items() if value is not None]


def seconds_left(rounds: Sequence[RoundRecord], num_rounds: int) -> float | None:
    """Return how long the rounds that are left take if they take as long as the last ones did; None before there is one."""
    lately = [record.seconds for record in rounds[-_LATELY:] if record.updates]
    return sum(lately) / len(lately) * (num_rounds - len(rounds)) if lately else None


def time_left(rounds: Sequence[RoundRecord], num_rounds: int) -> str:
    """Return the same for people."""
    seconds = seconds_left(rounds, num_rounds)
    return "-" if seconds is None else human_seconds(seconds)


def round_rows(rounds: Iterable[RoundRecord]) -> list[dict[str, Any]]:
    """Return rounds as JSON objects."""
    return [asdict(record) for record in rounds]
