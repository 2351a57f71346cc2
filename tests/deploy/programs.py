"""Programs that some tests need, mostly of Debian packages; without them these tests are skipped, and say how to get them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def program(name: str, package: str = "", remedy: str = "") -> str:
    """Return where a program is, beside this Python or on the path, or skip the test."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed: {remedy or f'apt-get install {package}'}")
    return path


def run(*words: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it printed."""
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60, env=environment, check=False)
