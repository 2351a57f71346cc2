"""What a wheel holds is what its commands need: tools of those who maintain HERON lie in deploy/, and are never imported."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.harness.sources import PACKAGES, ROOT, folder_of


def modules() -> dict[str, Path]:
    """Return the file of every module that the wheel has, by its name."""
    roots = [folder_of(name) for name in PACKAGES]
    paths = [(path, path.relative_to(root.parent).with_suffix("").parts) for root in roots for path in sorted(root.rglob("*.py"))]
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in paths}


def imported(path: Path) -> Iterator[str]:
    """Yield what a file imports, wherever it does: names of modules, and of things that may be modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def reached(files: dict[str, Path], starts: list[str]) -> set[str]:
    """Return the modules that are imported by these, directly or not, and their packages."""
    found: set[str] = set()
    pending = [name for name in starts if name in files]
    while pending:
        name = pending.pop()
        if name in files and name not in found:
            found.add(name)
            pending += [*imported(files[name]), name.rpartition(".")[0]]
    return found


def test_every_module_of_the_wheel_is_reached_from_a_command_or_from_what_programs_import() -> None:
    files = modules()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    commands = [place.partition(":")[0] for place in scripts.values()]
    mains = [name for name in files if name.endswith(".__main__")]
    assert len(commands) == 3 and set(commands) <= set(files)
    assert sorted(set(files) - reached(files, [*commands, *mains, "heron"])) == []


def test_no_module_of_the_wheel_imports_a_maintainers_tool() -> None:
    outside = {path.name for path in ROOT.iterdir() if path.is_dir()} & {"benchmarks", "deploy", "docs", "examples", "tests"}
    assert len(outside) > 3
    found = [(name, other) for name, path in modules().items() for other in imported(path) if other.partition(".")[0] in outside]
    assert found == []
