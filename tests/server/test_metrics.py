"""The server's metrics: conventional names, bounded labels, none that nobody updates."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

import heron_server
from heron_common.error_catalog import ErrorCode
from heron_server.metrics import PHASES, ServerMetrics
from heron_server.rounds.state import Phase

SOURCES = [path for path in Path(heron_server.__file__).parent.rglob("*.py") if path.name != "metrics.py"]
UPDATES = {Counter: {"inc"}, Gauge: {"set", "inc", "dec"}, Histogram: {"observe"}}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> ServerMetrics:
    return ServerMetrics(registry, lambda: 5.0, Path.cwd())


def wrapped(metrics: ServerMetrics) -> dict[str, MetricWrapperBase]:
    return {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


@functools.cache
def updates() -> set[tuple[str, str]]:
    """Return (metric attribute, method) of every call like `x.metrics.name.labels(...).inc()` in the code base."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                target = node.func.value
                if isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute) and target.func.attr == "labels":
                    target = target.func.value
                if isinstance(target, ast.Attribute) and ast.unparse(target.value).rpartition(".")[2].strip("_") == "metrics":
                    found.add((target.attr, node.func.attr))
    return found


def test_names_have_the_prefix_and_base_units(registry: CollectorRegistry, metrics: ServerMetrics) -> None:
    families = list(registry.collect())
    assert len(families) > len(wrapped(metrics))
    for family in families:
        assert re.fullmatch(r"heron_server_[a-z][a-z_]*[a-z]", family.name), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|megabytes|percent)(_|$)", family.name), family.name
        assert family.documentation.endswith("."), family.name


def test_counters_and_only_counters_are_exposed_with_total(registry: CollectorRegistry, metrics: ServerMetrics) -> None:
    metrics.rejections.labels(reason="x").inc()
    metrics.bytes.labels(direction="up", kind="x").inc()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", generate_latest(registry).decode(), re.MULTILINE))
    for name, kind in kinds.items():
        if not name.endswith("_created"):
            assert name.endswith("_total") == (kind == "counter"), name


def test_histograms_are_of_seconds(metrics: ServerMetrics) -> None:
    for metric in wrapped(metrics).values():
        if isinstance(metric, Histogram):
            assert metric._name.endswith("_seconds")


def test_no_label_grows_with_the_clients(metrics: ServerMetrics) -> None:
    labels = {label for metric in wrapped(metrics).values() for label in metric._labelnames}
    assert labels <= {"phase", "reason", "direction", "kind", "outcome"}


@pytest.mark.parametrize("name", sorted(wrapped(ServerMetrics(CollectorRegistry(), lambda: 0.0, Path.cwd())).keys() - {"_phase"}))
def test_every_metric_is_updated_somewhere(metrics: ServerMetrics, name: str) -> None:
    methods = UPDATES[type(wrapped(metrics)[name])]
    assert {method for attribute, method in updates() if attribute == name} & methods


def test_every_update_is_of_a_metric_that_exists(metrics: ServerMetrics) -> None:
    assert {name for name, _ in updates()} <= set(vars(metrics))


def test_exactly_one_phase_is_set_at_a_time(registry: CollectorRegistry, metrics: ServerMetrics) -> None:
    assert {phase.value for phase in Phase} < set(PHASES)
    for current in PHASES:
        metrics.phase(current)
        assert {p: registry.get_sample_value("heron_server_phase", {"phase": p}) for p in PHASES} == {
            p: float(p == current) for p in PHASES
        }


def test_what_is_asked_for_when_scraped_is_exposed(registry: CollectorRegistry, metrics: ServerMetrics) -> None:
    assert registry.get_sample_value("heron_server_spool_bytes") == 5.0
    resident = registry.get_sample_value("heron_server_resident_memory_bytes")
    peak = registry.get_sample_value("heron_server_peak_memory_bytes")
    assert resident and peak and peak >= resident > 0


def test_reasons_of_rejections_are_the_catalogs_codes() -> None:
    """The label's values are a closed set: the interceptor passes codes, never sentences."""
    assembly = (Path(heron_server.__file__).parent / "assembly.py").read_text()
    assert "rejections.labels(reason=code.value)" in assembly
    assert all(re.fullmatch(r"[a-z_]+", code.value) for code in ErrorCode)
