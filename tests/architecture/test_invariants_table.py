"""The table of invariants: all twenty-four numbers once, and as proofs exactly the tests that are marked with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.invariants import NONE_YET, PAGE, page, proofs

TESTS = Path(__file__).parents[1]
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_invariant_has_one_row_with_a_test_or_says_what_it_waits_for() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", TEXT, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 25))
    for number, statement, tests in rows:
        assert "::" in tests or (tests == NONE_YET and "Comes with" in statement), number


def test_the_table_names_the_tests_that_are_marked() -> None:
    assert page(TEXT, proofs(TESTS)) == TEXT, "run `make invariants`"


ROWS = "| 1 | This. | none yet |\n| 2 | That. | `tests/old.py::test_gone` |\n"


def written(folder: Path, *marks: str) -> Path:
    tests = folder / "tests"
    tests.mkdir()
    lines = "".join(f"@pytest.mark.invariant({mark})\ndef test_{index}(): ...\n" for index, mark in enumerate(marks))
    (tests / "test_some.py").write_text(f"import pytest\n{lines}")
    return tests


def test_marks_become_cells_those_with_a_note_last_and_a_row_without_any_says_so(tmp_path: Path) -> None:
    found = proofs(written(tmp_path, '1, "over the wire"', "1", "1"))
    place = "tests/test_some.py::test_"
    assert page(ROWS, found) == f"| 1 | This. | `{place}1`, `{place}2`; over the wire: `{place}0` |\n| 2 | That. | none yet |\n"


@pytest.mark.parametrize(("mark", "sentence"), [("3", "is marked with 3"), ('"1"', "expected invariant"), ("1, 2", "expected invariant")])
def test_a_mark_that_no_row_has_or_nobody_can_read_is_named(tmp_path: Path, mark: str, sentence: str) -> None:
    tests = written(tmp_path, mark)
    with pytest.raises(ValueError, match=sentence):
        page(ROWS, proofs(tests))
