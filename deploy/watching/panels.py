"""What the dashboard shows, as tables of panels: title, unit and queries; `dashboard.py` lays them out."""

from __future__ import annotations

from dataclasses import dataclass

_SERVER = 'job="heron-server", instance=~"$server"'
_CLIENT = 'job="heron-client", instance=~"$client"'


@dataclass(frozen=True)
class Query:
    """A query and the text of its line, in Grafana's `{{label}}` form."""

    expression: str
    legend: str = "{{instance}}"


@dataclass(frozen=True)
class Panel:
    """A panel; `kind` is Grafana's: `stat` for the latest value, `timeseries` for a curve. Units are Grafana's."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    meaning: str = ""


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _of_server(name: str) -> str:
    return f"heron_server_{name}{{{_SERVER}}}"


def _of_client(name: str) -> str:
    return f"heron_client_{name}{{{_CLIENT}}}"


def _stat(title: str, name: str, unit: str = "short", meaning: str = "") -> Panel:
    return Panel(title, (Query(_of_server(name)),), unit, "stat", meaning)


def _by(selected: str, label: str, function: str = "rate", range_: str = "$__rate_interval") -> str:
    return f"sum by ({label}) ({function}({selected}[{range_}]))"


def _quantiles(selected_bucket: str) -> tuple[Query, ...]:
    rate = f"sum by (le) (rate({selected_bucket}[$__rate_interval]))"
    return tuple(Query(f"histogram_quantile({q}, {rate})", f"{round(q * 100)} %") for q in (0.5, 0.95))


def _mean(histogram: str, of: str) -> str:
    total, count = (f"heron_{of}_{histogram}_{part}{{{_SERVER if of == 'server' else _CLIENT}}}" for part in ("sum", "count"))
    return f"rate({total}[$__rate_interval]) / rate({count}[$__rate_interval])"


RUN = Row(
    "Run",
    (
        Panel("phase", (Query(_of_server("phase") + " == 1", "{{phase}}"),), "none", "stat", "What the run is doing."),
        _stat("round", "round"),
        _stat("of rounds", "planned_rounds"),
        _stat("clients connected", "connected_clients"),
        _stat("of clients", "expected_clients"),
        _stat("test accuracy", "evaluation_accuracy", "percentunit"),
        _stat("front diverged", "diverged", "bool", "1 once fronts rest because most clients of a round diverged."),
        Panel("checkpoint failures", (Query(_of_server("checkpoint_failures_total")),), "short", "stat"),
    ),
)

LEARNING = Row(
    "Learning",
    (
        Panel(
            "accuracy",
            (
                Query(_of_server("evaluation_accuracy"), "held-out data"),
                Query(_of_server("federated_accuracy"), "clients' held-out samples"),
            ),
            "percentunit",
        ),
        Panel(
            "loss",
            (
                Query(_of_server("evaluation_loss"), "held-out data"),
                Query(_of_server("federated_loss"), "clients' held-out samples"),
                Query(_of_server("train_loss"), "back, latest upload"),
                Query(_of_server("head_loss"), "head, latest upload"),
                Query(_of_server("local_loss"), "clients' local loss"),
            ),
        ),
        Panel(
            "perplexity",
            (
                Query(_of_server("evaluation_perplexity"), "held-out text"),
                Query(_of_server("federated_perplexity"), "clients' held-out text"),
            ),
        ),
        Panel(
            "directional derivatives",
            (Query(_of_server("difference_mean"), "mean"), Query(_of_server("difference_variance"), "variance")),
            meaning="Of the clients' finite differences in the latest round.",
        ),
        Panel(
            "derivatives clipped or not finite",
            (
                Query(f"increase({_of_server('differences_clipped_total')}[5m])", "clipped"),
                Query(f"increase({_of_server('differences_non_finite_total')}[5m])", "not finite"),
                Query(f"increase({_of_server('diverged_clients_total')}[5m])", "clients that diverged"),
                Query(f"increase({_of_server('steps_skipped_total')}[5m])", "server steps skipped"),
            ),
        ),
    ),
)

ROUNDS = Row(
    "Rounds and clients",
    (
        Panel(
            "clients",
            (
                Query(_of_server("connected_clients"), "connected"),
                Query(_of_server("expected_clients"), "expected"),
                Query(_of_server("cohort_size"), "in this round"),
            ),
        ),
        Panel(
            "rounds in an hour",
            (
                Query(f"increase({_of_server('rounds_completed_total')}[1h])", "completed"),
                Query(f"increase({_of_server('rounds_abandoned_total')}[1h])", "abandoned"),
                Query(f"increase({_of_server('returns_to_best_total')}[1h])", "gone back to the best checkpoint"),
            ),
        ),
        Panel("round duration", _quantiles(_of_server("round_seconds_bucket")), "s"),
        Panel("clients dropped, by reason", (Query(_by(_of_server("dropped_clients_total"), "reason", "increase", "5m"), "{{reason}}"),)),
        Panel("requests refused, by reason", (Query(_by(_of_server("rejections_total"), "reason", "increase", "5m"), "{{reason}}"),)),
        Panel(
            "gates",
            (
                Query(_by(_of_server("uploads_rejected_total"), "reason", "increase", "5m"), "rejected, {{reason}}"),
                Query(f"increase({_of_server('gradients_shortened_total')}[5m])", "gradients shortened"),
                Query(_of_server("quarantined_clients"), "clients set apart"),
            ),
            meaning="What --gates keep from training, and uploads that no step could be taken on.",
        ),
        Panel(
            "replays that did not arrive",
            (
                Query(_of_server("replay_mismatches_total"), "uploads after a restart"),
                Query(_of_server("log_mismatches_total"), "update logs"),
            ),
        ),
    ),
)

TRAFFIC = Row(
    "Traffic and work of the server",
    (
        Panel("bytes a second", (Query(_by(_of_server("bytes_total"), "direction, kind"), "{{direction}} {{kind}}"),), "Bps"),
        Panel("uploads a second", (Query(_by(_of_server("uploads_total"), "outcome"), "{{outcome}}"),)),
        Panel("upload duration", _quantiles(_of_server("upload_seconds_bucket")), "s"),
        Panel("wait for training", _quantiles(_of_server("upload_queue_seconds_bucket")), "s"),
        Panel("server step", _quantiles(_of_server("step_seconds_bucket")), "s"),
        Panel("the trainer's share of a core", (Query(f"deriv({_of_server('trainer_processor_seconds')}[5m])"),), "percentunit"),
        Panel("spool", (Query(_of_server("spool_bytes"), "waiting"), Query(_of_server("spool_budget_bytes"), "budget")), "bytes"),
        Panel("disk of the run", (Query(_of_server("disk_free_bytes"), "free"), Query(_of_server("disk_size_bytes"), "size")), "bytes"),
        Panel(
            "server memory",
            (
                Query(_of_server("resident_memory_bytes"), "resident"),
                Query(_of_server("peak_memory_bytes"), "peak"),
                Query(_of_server("anonymous_memory_bytes"), "in no file"),
                Query(_of_server("memory_limit_bytes"), "limit"),
            ),
            "bytes",
        ),
    ),
)

DEVICES = Row(
    "Devices that are scraped",
    (
        Panel("phase", (Query(_of_client("phase") + " == 1", "{{instance}} {{phase}}"),)),
        Panel("round", (Query(_of_client("round")), Query(_of_client("rounds_completed_total"), "{{instance}} completed"))),
        Panel(
            "loss", (Query(_of_client("local_loss"), "{{instance}} local"), Query(_of_client("server_loss"), "{{instance}} of the server"))
        ),
        Panel("local step, mean", (Query(_mean("local_step_seconds", "client")),), "s"),
        Panel(
            "share of time that training waits for uploads", (Query(f"rate({_of_client('upload_wait_seconds_total')}[5m])"),), "percentunit"
        ),
        Panel(
            "memory",
            (
                Query(_of_client("resident_memory_bytes"), "{{instance}} resident"),
                Query(_of_client("peak_memory_bytes"), "{{instance}} peak"),
                Query(_of_client("anonymous_memory_bytes"), "{{instance}} in no file"),
                Query(_of_client("memory_limit_bytes"), "{{instance}} limit"),
            ),
            "bytes",
        ),
        Panel("bytes a second", (Query(_by(_of_client("bytes_total"), "instance, direction"), "{{instance}} {{direction}}"),), "Bps"),
        Panel("uploads answered a second", (Query(f"rate({_of_client('uploads_answered_total')}[$__rate_interval])"),)),
        Panel(
            "directional derivatives",
            (
                Query(_of_client("difference_mean"), "{{instance}} mean"),
                Query(_of_client("difference_variance"), "{{instance}} variance"),
            ),
        ),
        Panel(
            "derivatives clipped or not finite",
            (
                Query(f"increase({_of_client('differences_clipped_total')}[5m])", "{{instance}} clipped"),
                Query(f"increase({_of_client('differences_non_finite_total')}[5m])", "{{instance}} not finite"),
            ),
        ),
        Panel(
            "reconnects and refusals",
            (
                Query(f"increase({_of_client('reconnects_total')}[5m])", "{{instance}} reconnects"),
                Query(_by(_of_client("rejections_total"), "instance, reason", "increase", "5m"), "{{instance}} {{reason}}"),
            ),
        ),
        Panel("texts cut off", (Query(_of_client("texts_truncated")),)),
    ),
)

ROWS = (RUN, LEARNING, ROUNDS, TRAFFIC, DEVICES)
