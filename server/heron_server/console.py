"""What the server shows live on a terminal."""

from __future__ import annotations

from heron_common.console import human_bytes
from heron_common.process_memory import resident_memory
from heron_server.assembly import Assembly


def console_rows(parts: Assembly) -> list[tuple[str, str]]:
    """Return name and value of each line."""
    machine, worker = parts.coordinator.machine, parts.worker
    last = worker.rounds[-1] if worker.rounds else None
    with parts.coordinator.changed:
        up = sum(sum(r.bytes_up.values()) for r in parts.coordinator.registry.records())
        down = sum(sum(r.bytes_down.values()) for r in parts.coordinator.registry.records())
        live, cohort = parts.coordinator.registry.num_live, len(machine.cohort)
    return [
        ("round", f"{min(machine.round.round_index + 1, machine.rules.num_rounds)} of {machine.rules.num_rounds}, {machine.phase.value}"),
        ("clients", f"{live} live, {cohort} in this round"),
        ("test accuracy", _figure(last.test_accuracy if last else None, "{:.2%}")),
        *([("test perplexity", f"{last.test_perplexity:.2f}")] if last and last.test_perplexity is not None else []),
        ("test loss", _figure(last.test_loss if last else None, "{:.4f}")),
        *(last.federated_figures() if last else []),
        ("server loss", _figure(last.server_loss if last else None, "{:.4f}")),
        ("bytes up, down", f"{human_bytes(up)}, {human_bytes(down)}"),
        ("spool", human_bytes(parts.coordinator.spool.used_bytes)),
        ("memory", human_bytes(resident_memory().resident_bytes)),
    ]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
