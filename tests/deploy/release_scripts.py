"""The scripts of deploy/release as modules: they import each other from their own folder, as they do when they are run."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from tests.deploy.programs import DEPLOY


def script(name: str) -> ModuleType:
    """Import one of them."""
    folder = str(DEPLOY / "release")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
