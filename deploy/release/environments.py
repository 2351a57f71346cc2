"""Virtual environments of a release's scripts: made with the versions of constraints.txt, made anew when what is wanted changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pins import ROOT, requirements

CONSTRAINTS = ROOT / "constraints.txt"


def tools() -> Path:
    """Return the interpreter of an environment in build/ that has pip and the extra `release`."""
    folder = ROOT / "build" / "release-tools"
    wanted = sorted(requirements("release")[name] for name in ("build", "cyclonedx-bom", "twine"))
    recorded = "\n".join([sys.version, *wanted, CONSTRAINTS.read_text(encoding="utf-8")])
    python, stamp = folder / "bin" / "python", folder / "wanted.txt"
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == recorded):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install(python, python, wanted)
        stamp.write_text(recorded, encoding="utf-8")
    return python


def environment(folder: Path, *wanted: Sequence[str]) -> Path:
    """Make an environment without pip, install one list after the other into it, and return its interpreter."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    for words in wanted:
        install(tools(), python, words)
    return python


def install(pip: Path, python: Path, wanted: Sequence[str]) -> None:
    """Install with the pip of one interpreter into the environment of another."""
    command = [str(pip), "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    subprocess.run([*command, *wanted], check=True, env=clean())


def clean() -> dict[str, str]:
    """Return this process's environment without what would lead Python to a checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
