"""Every metric that a server and a client export, derived from what they register, so that no list can be out of date."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from heron_client.metrics import ClientMetrics
from heron_common.errors import ConfigurationError
from heron_server.metrics import ServerMetrics

_NAMED = re.compile(r"\bheron_(?:server|client)_[a-z_]+")
_HISTOGRAM_PARTS = ("_bucket", "_count", "_sum")


@dataclass(frozen=True)
class Metric:
    """A metric by the name that a query gives it: a counter's ends in `_total`, a histogram's is followed by `_bucket`, `_count` or `_sum`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def series(self) -> tuple[str, ...]:
        """The names that queries may use."""
        return tuple(self.name + part for part in _HISTOGRAM_PARTS) if self.kind == "histogram" else (self.name,)


@functools.cache
def catalogue() -> tuple[Metric, ...]:
    """Return all metrics, the server's first, in the order in which they are registered."""
    server, client = CollectorRegistry(), CollectorRegistry()
    owners = (ServerMetrics(server, lambda: 0.0, Path()), ClientMetrics(client))
    labels = {metric._name: tuple(metric._labelnames) for owner in owners for metric in _wrapped(vars(owner).values())}
    return tuple(
        Metric(family.name + ("_total" if family.type == "counter" else ""), family.type, labels.get(family.name, ()), family.documentation)
        for registry in (server, client)
        for family in registry.collect()
    )


def checked(expression: str) -> str:
    """Return a query all of whose HERON metrics exist.

    Raises:
        ConfigurationError: it names another.

    """
    known = {series for metric in catalogue() for series in metric.series}
    unknown = sorted(named_in(expression) - known)
    if unknown:
        raise ConfigurationError(f"no process exports {', '.join(unknown)}, which the query {expression!r} names: mend the query")
    return expression


def named_in(expression: str) -> set[str]:
    """Return the HERON metrics that a query names."""
    return set(_NAMED.findall(expression))


def _wrapped(values: Iterable[object]) -> Iterable[MetricWrapperBase]:
    return (value for value in values if isinstance(value, MetricWrapperBase))
