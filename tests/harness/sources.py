"""Where what is tested lies: in this checkout, or, when the suite runs against a wheel (`make wheel-check`), in site-packages."""

from __future__ import annotations

from importlib.metadata import distribution
from importlib.util import find_spec
from json import loads
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The repository, or the folder that has everything of it but the packages."""

PACKAGES = ("heron_proto", "heron_common", "heron_server", "heron_client", "heron_cli", "heron")

IN_CHECKOUT = (ROOT / "common").is_dir()

only_in_checkout = pytest.mark.skipif(
    not IN_CHECKOUT, reason="the suite runs against a wheel: this test looks at the repository's own folders"
)


def folder_of(package: str) -> Path:
    """Return the folder of a package, wherever it is imported from."""
    specification = find_spec(package)
    assert specification is not None and specification.origin is not None, package
    return Path(specification.origin).parent


def installable() -> Path:
    """Return what pip can install as heron-sfl: the checkout, or the wheel that the suite runs against."""
    if IN_CHECKOUT:
        return ROOT
    record = loads(distribution("heron-sfl").read_text("direct_url.json") or "{}")
    return Path(unquote(urlsplit(record["url"]).path))
