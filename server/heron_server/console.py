"""What the server shows live on a terminal."""

from __future__ import annotations

from heron_common.process.process_memory import resident_memory
from heron_common.terminal.figures import human_bytes
from heron_server.assembly import Assembly
from heron_server.summary import time_left


def console_rows(parts: Assembly) -> list[tuple[str, str]]:
    """Return name and value of each line; takes no lock, for whoever draws holds one that those who log wait for."""
    seen, worker = parts.owner.snapshot, parts.worker
    last = worker.rounds[-1] if worker.rounds else None
    return [
        ("round", f"{min(seen.round_index + 1, seen.num_rounds)} of {seen.num_rounds}, {seen.state}"),
        ("time left", time_left(worker.rounds, seen.num_rounds)),
        ("clients", f"{seen.live_clients} live, {seen.cohort_size} in this round"),
        ("test accuracy", _figure(last.test_accuracy if last else None, "{:.2%}")),
        *([("test perplexity", f"{last.test_perplexity:.2f}")] if last and last.test_perplexity is not None else []),
        ("test loss", _figure(last.test_loss if last else None, "{:.4f}")),
        *(last.federated_figures() if last else []),
        ("server loss", _figure(last.server_loss if last else None, "{:.4f}")),
        ("bytes up, down", f"{human_bytes(seen.bytes_up)}, {human_bytes(seen.bytes_down)}"),
        ("spool", human_bytes(parts.spool.used_bytes)),
        ("memory", human_bytes(resident_memory().resident_bytes)),
    ]


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
