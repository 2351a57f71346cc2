"""`python -m deploy.invariants`: write into docs/invariants.md which tests are marked as proofs of each statement; `make invariants` calls it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "invariants.md"
NONE_YET = "none yet"

_ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Proof:
    """A test that is marked `@pytest.mark.invariant(number, note)`; the note, if any, says which part of the statement it proves."""

    number: int
    note: str
    test: str


def proofs(tests: Path) -> list[Proof]:
    """Return what is marked in the files of a folder, by path and place. Raises ValueError for a mark that cannot be read."""
    return [proof for path in sorted(tests.rglob("test_*.py")) for proof in _proofs_of(path, path.relative_to(tests.parent).as_posix())]


def _proofs_of(path: Path, name: str) -> Iterator[Proof]:
    functions = (node for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body if isinstance(node, ast.FunctionDef))
    for function in functions:
        for mark in function.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.invariant":
                number, note = (*(ast.literal_eval(argument) for argument in mark.args), "")[:2]
                if not isinstance(number, int) or not isinstance(note, str):
                    raise ValueError(
                        f"{name}:{mark.lineno}: expected invariant(number) or invariant(number, note), found {ast.unparse(mark)}"
                    )
                yield Proof(number, note, f"{name}::{function.name}")


def page(text: str, found: list[Proof]) -> str:
    """Return the page with the tests of every statement, those with a note behind the others; a mark without a row is a ValueError."""
    known = {int(number) for number, _, _ in _ROW.findall(text)}
    unknown = [proof for proof in found if proof.number not in known]
    if unknown:
        raise ValueError(f"{unknown[0].test} is marked with {unknown[0].number}, which docs/invariants.md does not have: mend one of both")

    def row(match: re.Match[str]) -> str:
        groups: dict[str, list[str]] = defaultdict(list)
        for proof in found:
            if proof.number == int(match[1]):
                groups[proof.note].append(f"`{proof.test}`")
        cells = [(f"{note}: " if note else "") + ", ".join(tests) for note, tests in sorted(groups.items())]
        return f"| {match[1]} | {match[2]} | {'; '.join(cells) or NONE_YET} |"

    return _ROW.sub(row, text)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), proofs(ROOT / "tests")), encoding="utf-8")


if __name__ == "__main__":
    main()
