"""Dashboard and alerts: generated, up to date, and of metrics, labels and jobs that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from deploy.watching.__main__ import GENERATED_FILES, main
from deploy.watching.alert_rules import ALERTS
from deploy.watching.catalogue import Metric, catalogue, checked, named_in
from deploy.watching.panels import ROWS
from heron_client.metrics import ClientMetrics
from heron_common.error_catalog import ErrorCode
from heron_common.errors import ConfigurationError
from heron_server.metrics import ServerMetrics
from tests.deploy.programs import DEPLOY, program, run

SCRAPE_LABELS = {"job", "instance", "le"}


def queries() -> list[str]:
    """Return every query of dashboard and alerts."""
    shown = [query.expression for row in ROWS for panel in row.panels for query in panel.queries]
    return [*shown, *(alert.expression for alert in ALERTS)]


def metrics_by_series() -> dict[str, Metric]:
    return {series: metric for metric in catalogue() for series in metric.series}


@pytest.mark.parametrize("name", GENERATED_FILES)
def test_what_is_committed_is_what_the_code_makes(name: str, tmp_path: Path) -> None:
    main(tmp_path)
    assert (DEPLOY / name).read_text() == (tmp_path / name).read_text(), f"{name} is out of date: run `make dashboards`"


def test_the_catalogue_has_the_names_that_are_exposed() -> None:
    """The exposition format is a second opinion on names and kinds."""
    server, client = CollectorRegistry(), CollectorRegistry()
    ServerMetrics(server, lambda: 0.0, Path.cwd())
    ClientMetrics(client)
    text = (generate_latest(server) + generate_latest(client)).decode()
    exposed = {name: kind for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE) if not name.endswith("_created")}
    assert {metric.name: metric.kind for metric in catalogue()} == exposed
    assert len(exposed) > 50


def test_a_query_of_a_metric_that_does_not_exist_is_refused() -> None:
    for wrong in ("heron_server_rounds", "rate(heron_client_bytes[5m])", "heron_server_round_seconds", "heron_server_rounds_completed"):
        with pytest.raises(ConfigurationError, match="no process exports"):
            checked(wrong)


def test_every_metric_that_is_named_exists_in_dashboard_and_alerts() -> None:
    for name in GENERATED_FILES:
        assert named_in((DEPLOY / name).read_text()) <= set(metrics_by_series()), name


def test_every_metric_is_on_the_dashboard() -> None:
    shown = named_in((DEPLOY / "grafana/dashboards/heron.json").read_text())
    assert [metric.name for metric in catalogue() if not shown & set(metric.series)] == []


def test_every_label_that_is_selected_or_grouped_by_is_one_of_the_metric() -> None:
    series = metrics_by_series()
    for query in queries():
        known = SCRAPE_LABELS | {label for name in named_in(query) for label in series[name].labels}
        selected = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query))
        grouped = {label.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", query) for label in group.split(",")}
        assert selected | grouped <= known, query


def test_legends_and_sentences_name_labels_that_their_query_keeps() -> None:
    series = metrics_by_series()
    for query in (query for row in ROWS for panel in row.panels for query in panel.queries):
        grouped = re.search(r"sum by \(([^)]*)\)", query.expression)
        kept = set(re.split(r", ", grouped[1])) if grouped else {"instance", *series[min(named_in(query.expression))].labels}
        assert set(re.findall(r"{{(\w+)}}", query.legend)) <= kept, query
    for alert in ALERTS:
        named = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.advice))
        assert named <= {"instance", *(["reason"] if "reason)" in alert.expression else [])}, alert.name


def test_reasons_in_alerts_are_codes_of_the_catalog() -> None:
    reasons = {reason for alert in ALERTS for group in re.findall(r'reason=~"([^"]*)"', alert.expression) for reason in group.split("|")}
    assert reasons and reasons < {code.value for code in ErrorCode}
    assert {"certificate_revoked", "identity_mismatch", "spool_full"} <= reasons


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    panels: list[dict[str, Any]] = json.loads((DEPLOY / "grafana/dashboards/heron.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 30
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_alerts_go_by_jobs_that_the_configuration_scrapes() -> None:
    configuration = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"] for job in configuration["scrape_configs"]}
    assert {job for query in queries() for job in re.findall(r'job="([^"]*)"', query)} == jobs


def test_promtool_accepts_configuration_and_rules() -> None:
    promtool = program("promtool", "prometheus")
    result = run(promtool, "check", "config", DEPLOY / "prometheus/prometheus.yml")
    assert result.returncode == 0 and f"SUCCESS: {len(ALERTS)} rules found" in result.stdout, result.stdout + result.stderr


def test_promtool_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """Grafana's own variables are put in place of it; `promtool check rules` reads any expression."""
    promtool = program("promtool", "prometheus")
    written = [re.sub(r"\$__rate_interval", "1m", query) for query in queries()]
    rules = [{"record": f"query:number{index}", "expr": expression} for index, expression in enumerate(written)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    result = run(promtool, "check", "rules", path)
    assert result.returncode == 0, result.stdout + result.stderr
