"""What `heron status` shows of a scrape: name and value of each line, for people."""

from __future__ import annotations

import math

from heron_cli.status_page.scrape import Scrape
from heron_common.terminal.figures import human_bytes

Rows = list[tuple[str, str]]

_NEARLY_FULL = 0.9


def rows_of(scraped: Scrape) -> Rows:
    """Return the page of a server or a client."""
    return _server_rows(scraped) if scraped.side == "server" else _client_rows(scraped)


def phase_of(scraped: Scrape) -> str:
    """Return the phase that the process is in."""
    return next(iter(scraped.by("phase", "phase")), "-")


def _server_rows(s: Scrape) -> Rows:
    planned = s.value("planned_rounds") or 0
    completed = s.total("rounds_completed_total")
    rows = [
        ("phase", phase_of(s)),
        ("round", f"{min((s.value('round') or 0) + 1, planned):.0f} of {planned:.0f}"),
        ("rounds", f"{completed:.0f} completed, {s.total('rounds_abandoned_total'):.0f} abandoned since the start of this process"),
        (
            "clients",
            f"{s.total('connected_clients'):.0f} of {s.total('expected_clients'):.0f} connected, {s.total('cohort_size'):.0f} in this round",
        ),
    ]
    # Gauges that nobody has set yet are zeros, which would read as results.
    if completed:
        rows += _results(s)
    if loss := s.value("train_loss"):
        rows.append(("server loss", _number(loss)))
    rows += [
        (
            "bytes up, down",
            f"{human_bytes(s.total('bytes_total', direction='up'))}, {human_bytes(s.total('bytes_total', direction='down'))}",
        ),
        ("dropped", _reasons(s.by("dropped_clients_total", "reason"))),
        ("refused", _reasons(s.by("rejections_total", "reason"))),
        ("spool", f"{human_bytes(s.total('spool_bytes'))} of {human_bytes(s.total('spool_budget_bytes'))}"),
        ("memory, peak", _memory(s)),
    ]
    return [*rows, ("attention", "; ".join(_troubles(s)) or "nothing")]


def _results(s: Scrape) -> Rows:
    """Return the scores of the latest round, those that the run has."""
    figures = (
        ("test accuracy", "evaluation_accuracy", "{:.2%}"),
        ("test loss", "evaluation_loss", "{:.4f}"),
        ("test perplexity", "evaluation_perplexity", "{:.2f}"),
        ("held-out accuracy", "federated_accuracy", "{:.2%}"),
        ("held-out loss", "federated_loss", "{:.4f}"),
        ("held-out perplexity", "federated_perplexity", "{:.2f}"),
        ("local loss", "local_loss", "{:.4f}"),
    )
    return [(name, form.format(value)) for name, metric, form in figures if (value := s.value(metric))]


def _client_rows(s: Scrape) -> Rows:
    waited, steps = s.total("upload_wait_seconds_total"), s.total("local_step_seconds_count")
    return [
        ("phase", phase_of(s)),
        ("round", f"{s.total('round') + 1:.0f}, {s.total('rounds_completed_total'):.0f} completed by this process"),
        ("steps", f"{steps:.0f}, {s.total('local_step_seconds_sum') / steps:.3g} s each" if steps else "none yet"),
        ("local loss", _number(s.value("local_loss"))),
        ("server loss", _number(s.value("server_loss"))),
        ("waited for uploads", f"{waited:.1f} s"),
        (
            "bytes up, down",
            f"{human_bytes(s.total('bytes_total', direction='up'))}, {human_bytes(s.total('bytes_total', direction='down'))}",
        ),
        ("refused", _reasons(s.by("rejections_total", "reason"))),
        ("reconnects", f"{s.total('reconnects_total'):.0f}"),
        ("memory, peak", _memory(s)),
    ]


def _troubles(s: Scrape) -> list[str]:
    """Return what the alerts would say that shows in a single scrape."""
    found = []
    if s.value("diverged"):
        found.append("the front diverged and rests")
    if failures := s.total("checkpoint_failures_total"):
        found.append(f"checkpoints failed: {failures:.0f}")
    if phase_of(s) in ("waiting", "training", "closing") and s.total("connected_clients") < s.total("expected_clients"):
        found.append("fewer clients than expected")
    if s.total("spool_bytes") > _NEARLY_FULL * s.total("spool_budget_bytes"):
        found.append("the spool is nearly full")
    if s.total("replay_mismatches_total") + s.total("log_mismatches_total"):
        found.append("replays did not arrive")
    return found


def _memory(s: Scrape) -> str:
    limit = s.value("memory_limit_bytes")
    now, peak = human_bytes(s.total("resident_memory_bytes")), human_bytes(s.total("peak_memory_bytes"))
    return f"{now}, {peak}" + (f", limit {human_bytes(limit)}" if limit else "")


def _reasons(counts: dict[str, float]) -> str:
    return ", ".join(f"{count:.0f} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"


def _number(value: float | None) -> str:
    """Return a loss; a gauge that nobody has set yet is zero."""
    return f"{value:.4f}" if value and math.isfinite(value) else "-"
