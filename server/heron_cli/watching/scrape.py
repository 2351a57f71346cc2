"""One look at a process's metrics endpoint: its samples by name and labels."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from heron_common.errors import ConfigurationError, TransportError

TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 4 << 20
"""A hundred times what a server exports; what is longer is something else."""


@dataclass(frozen=True)
class Scrape:
    """The samples of a moment; `side` is `server` or `client`, names are given without `heron_SIDE_`."""

    side: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def value(self, name: str, **labels: str) -> float | None:
        """Return a sample, or None."""
        return self.samples.get((f"heron_{self.side}_{name}", tuple(sorted(labels.items()))))

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of a name with these labels among theirs; zero if there are none."""
        return sum(v for (n, found), v in self.samples.items() if n == f"heron_{self.side}_{name}" and labels.items() <= set(found))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the samples of a name by one label's value, without zeros."""
        values: dict[str, float] = {}
        for (found, labels), value in self.samples.items():
            if found == f"heron_{self.side}_{name}" and value:
                key = dict(labels)[label]
                values[key] = values.get(key, 0.0) + value
        return values


def scrape(address: str) -> Scrape:
    """Ask host:port for its metrics.

    Raises:
        TransportError: nobody answers.
        ConfigurationError: whoever answers is no HERON process.

    """
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_SECONDS) as answer:
            text = answer.read(_MAX_BYTES).decode("utf-8", errors="replace")
    except urllib.error.HTTPError as exc:
        exc.close()
        raise ConfigurationError(f"{address} answers {exc.code}, not metrics: {_ADVICE}") from exc
    except (http.client.HTTPException, ValueError) as exc:
        raise ConfigurationError(f"{address} does not serve metrics over HTTP ({exc or type(exc).__name__}): {_ADVICE}") from exc
    except OSError as exc:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        raise TransportError(f"{address} does not answer ({reason}): {_ADVICE}") from exc
    return parse(text, address)


_ADVICE = "give host:port of a heron-server's or heron-client's --metrics-port"


def parse(text: str, address: str) -> Scrape:
    """Read the exposition format. Raises ConfigurationError if it is not of a HERON process."""
    try:
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except ValueError as exc:
        raise ConfigurationError(f"what {address} answers are no metrics ({exc}): {_ADVICE}") from exc
    for side in ("server", "client"):
        if any(name == f"heron_{side}_round" for name, _ in samples):
            return Scrape(side, samples)
    raise ConfigurationError(f"{address} serves metrics, but not of HERON: {_ADVICE}")
