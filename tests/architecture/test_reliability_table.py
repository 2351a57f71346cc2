"""The tables of docs/reliability.md: every crash point once, with what it is tried with, and every test that they name exists."""

from __future__ import annotations

import re

from heron_common.process.crash_points import CrashPoint
from tests.harness.sources import PACKAGES, ROOT, folder_of
from tests.system.test_crashes import CASES, EVERY_CLIENT_POINT, EVERY_RPC_AND_STORAGE_STEP

TABLE = (ROOT / "docs" / "reliability.md").read_text()


def test_every_point_has_one_row_in_the_order_of_the_code() -> None:
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \| `[^|]+ \| 0 \|$", TABLE, re.MULTILINE) == [point.value for point in CrashPoint]


def test_every_row_says_what_its_point_is_tried_with() -> None:
    for case in CASES:
        tried = f"`{case.preset}`{', held-out samples' if case.holds_out else ''}"
        assert re.search(rf"^\| `{case.point}` \| [^|]+ \| {tried} \| 0 \|$", TABLE, re.MULTILINE), case


def test_every_point_is_a_place_in_the_code() -> None:
    code = "".join(path.read_text() for package in PACKAGES for path in folder_of(package).rglob("*.py"))
    assert [point for point in CrashPoint if f"crash_point(CrashPoint.{point.name})" not in code] == []


def test_the_counts_of_kills_are_those_of_the_tests() -> None:
    assert (len(EVERY_RPC_AND_STORAGE_STEP), len(EVERY_CLIENT_POINT)) == (16, 11)
    assert "kills one server sixteen times and one client eleven times" in TABLE.replace("\n", " ")


def test_every_promise_names_tests_that_exist() -> None:
    promises = TABLE.partition("## Points")[0].splitlines()
    rows = [row for row in promises if row.startswith("| ") and not row.startswith(("| what", "|---"))]
    assert rows and all("::" in row for row in rows)
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TABLE)
    missing = [f"{path}::{name}" for path, name in named if f"\ndef {name}(" not in (ROOT / path).read_text()]
    assert missing == []
