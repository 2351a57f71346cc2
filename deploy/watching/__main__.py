"""`python -m deploy.watching DEPLOY_DIRECTORY`: write the dashboard and the alert rules; `make dashboards` calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from deploy.watching.alert_rules import rule_file
from deploy.watching.dashboard import dashboard_file

GENERATED_FILES: dict[str, Callable[[], str]] = {"grafana/dashboards/heron.json": dashboard_file, "prometheus/alerts.yml": rule_file}
"""Where each file is below `deploy/`, and what makes it."""


def main(directory: Path) -> None:
    """Write every generated file."""
    for name, make in GENERATED_FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
