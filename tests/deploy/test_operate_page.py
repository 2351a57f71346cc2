"""docs/operate.md: its tables of alerts and exit codes are those of the code."""

from __future__ import annotations

import re

from deploy.watching.alert_rules import ALERTS
from heron_common.exit_codes import ExitCode
from tests.deploy.programs import DEPLOY, ROOT

PAGE = (ROOT / "docs/operate.md").read_text()


def test_every_alert_has_its_line_in_order() -> None:
    assert re.findall(r"^\| `(Heron\w+)` \|", PAGE, re.MULTILINE) == [alert.name for alert in ALERTS]


def test_exit_codes_say_what_systemd_does() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| .* \| (stays down|starts again) \|$", PAGE, re.MULTILINE))
    assert set(map(int, rows)) == set(ExitCode)
    for unit in ("heron-client", "heron-server"):
        text = (DEPLOY / "systemd" / f"{unit}.service").read_text()
        prevented = re.search(r"^RestartPreventExitStatus=(.*)$", text, re.MULTILINE)
        assert prevented and {code for code, what in rows.items() if what == "stays down"} - {"0"} == set(prevented[1].split()) - {"SIGILL"}


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"deploy/[\w./-]*\w", PAGE))
    assert named and all((ROOT / name).exists() for name in named), named
