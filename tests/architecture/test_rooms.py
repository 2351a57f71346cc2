"""A package's folders are rooms: which may import which is one table, there is no cycle, and the import that breaks it is named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.sources import folder_of

ROOMS = {
    "heron_common": {
        "error_catalog": "",
        "errors": "error_catalog",
        "exit_codes": "errors",
        "ids": "errors",
        "options": "",
        "numerics": "error_catalog errors ids",
        "specification": "error_catalog errors numerics",
        "algorithm": "errors numerics options specification",
        "protocol": "algorithm error_catalog errors ids numerics specification",
        "files": "errors",
        "process": "errors exit_codes",
        "terminal": "errors exit_codes",
        "data": "errors files ids numerics specification terminal",
        "version": "",
    },
    "heron_client": {
        "state_directory": "",
        "metrics": "",
        "network": "state_directory",
        "training": "network state_directory",
        "config": "network",
        "device": "config network state_directory training",
        "round_report": "metrics",
        "session": "device metrics network round_report state_directory training",
        "app": "config metrics network session state_directory training",
        "client": "app config",
        "cli": "app config device",
        "__main__": "cli",
    },
    "heron_server": {
        "objects": "",
        "metrics": "",
        "storage": "",
        "certificates": "",
        "rounds": "metrics storage",
        "summary": "rounds",
        "models": "",
        "models.transformer": "models",
        "models.user": "models models.transformer",
        "models.families": "models models.transformer",
        "models.registry": "models models.families models.transformer models.user",
        "models.survey": "models models.registry models.transformer models.user",
        "leakage": "models models.registry models.survey models.user",
        "programs": "models",
        "training": "metrics models programs rounds storage summary",
        "configuration": "models models.registry rounds storage training",
        "exports": "configuration models models.registry models.transformer models.user storage",
        "publication": "configuration models models.families models.registry models.user objects programs storage training",
        "resumption": "rounds storage summary training",
        "service": "certificates rounds storage",
        "trainer_assembly": "configuration metrics models publication rounds storage summary training",
        "assembly": "configuration metrics models objects publication resumption rounds service storage summary trainer_assembly training",
        "console": "assembly summary",
        "ending": "",
        "app": "assembly configuration console ending objects rounds storage summary",
        "cli": "app configuration",
        "__main__": "cli",
    },
    "heron_cli": {
        "processes": "",
        "trained_options": "",
        "leakage_figures": "",
        "report_page": "leakage_figures",
        "status_page": "",
        "simulation": "",
        "audit": "",
        "certs": "",
        "cuts": "",
        "demo": "processes",
        "evaluate": "trained_options",
        "export": "trained_options",
        "health": "",
        "leakage": "leakage_figures trained_options",
        "report": "leakage_figures report_page",
        "simulate": "simulation",
        "python_api": "report report_page simulation",
        "status": "status_page",
        "cli": "audit certs cuts demo evaluate export health leakage report simulate status",
        "__main__": "cli",
    },
}
"""Of each package its rooms, lowest first, each with the rooms above itself that it may import. A module beside the folders is a room of its own."""


OF_THEIR_OWN = {"models.registry", "models.survey"}
"""Modules within a folder that stand above it."""


def modules(package: str) -> dict[str, Path]:
    """Return the modules of a package by dotted name without the package's own."""
    root = folder_of(package)
    named = {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))}
    return {name: path for name, path in named.items() if name != "__init__"}


def room_of(name: str, folders: frozenset[str]) -> str:
    """Return the room of a module, or of a name within one: its folder, or itself where it lies beside the folders."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if (room := ".".join(parts[:length])) in OF_THEIR_OWN:
            return room
        if (folder := ".".join(parts[:length])) in folders:
            return folder
    return parts[0]


def imports(package: str) -> Iterator[tuple[str, str, str]]:
    """Yield room, imported room and the place, for every import between two rooms of a package."""
    root, found = folder_of(package), modules(package)
    folders = frozenset(".".join(path.relative_to(root).parts[:-1]) for path in found.values()) - {""}
    for name, path in found.items():
        room = room_of(name.removesuffix(".__init__"), folders)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.partition(".")[0] == package]
            else:
                continue
            for imported in names:
                if (other := room_of(imported.partition(".")[2], folders)) != room:
                    yield room, other, f"{path.relative_to(root.parent)}:{node.lineno} imports {imported}"


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_the_rooms_that_the_table_allows(package: str) -> None:
    wrong = [place for room, other, place in imports(package) if other not in ROOMS[package].get(room, "").split()]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ROOMS)
def test_the_table_has_every_room_and_no_arrow_that_nobody_uses(package: str) -> None:
    root = folder_of(package)
    folders = frozenset(".".join(path.relative_to(root).parts[:-1]) for path in modules(package).values()) - {""}
    assert {room_of(name, folders) for name in modules(package)} == set(ROOMS[package])
    used = {(room, other) for room, other, _ in imports(package)}
    assert {(room, other) for room, others in ROOMS[package].items() for other in others.split()} == used


@pytest.mark.parametrize("package", ROOMS)
def test_the_table_allows_no_cycle(package: str) -> None:
    order = list(ROOMS[package])
    upwards = [
        (room, other) for room, others in ROOMS[package].items() for other in others.split() if order.index(other) >= order.index(room)
    ]
    assert upwards == []


def test_a_folder_that_two_rooms_share_is_the_deeper_one() -> None:
    folders = frozenset({"models", "models.user"})
    assert room_of("models.user.cut", folders) == "models.user"
    assert room_of("models.probes.Probes", folders) == "models"
    assert room_of("assembly.assemble_run", folders) == "assembly"
