"""What the scripts of a release read from pyproject.toml and constraints.txt: versions, names, dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def project() -> dict[str, Any]:
    """Return the table [project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def canonical(name: str) -> str:
    """Return a distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Return the version of every distribution that constraints.txt names."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonical(name): version for name, found, version in (line.partition("==") for line in lines) if found}


def pin(name: str) -> str:
    """Return the version that constraints.txt has for a distribution."""
    return pins()[canonical(name)]


def requirements(*extras: str) -> dict[str, str]:
    """Return {name: requirement} of the plain dependencies and of these extras, as pyproject.toml writes them."""
    table = project()
    written = [*table["dependencies"], *(line for extra in extras for line in table["optional-dependencies"][extra])]
    return {canonical(re.split(r"[\[><=!~; ]", line, maxsplit=1)[0]): line for line in written}
