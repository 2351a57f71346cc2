"""Imports point one way: proto <- common <- server | client <- cli, and a device never needs torch, transformers or pydantic."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.sources import PACKAGES, folder_of

WHERE = {package: folder_of(package).parent for package in PACKAGES}
MAY_IMPORT = {
    "heron_proto": set[str](),
    "heron_common": {"heron_proto"},
    "heron_server": {"heron_proto", "heron_common"},
    "heron_client": {"heron_proto", "heron_common"},
    "heron_cli": {"heron_proto", "heron_common", "heron_server", "heron_client"},
    "heron": {"heron_common", "heron_server", "heron_client", "heron_cli"},
}
LEAN = ("heron_proto", "heron_common", "heron_client")
# Installed by an extra, imported only by the function that needs it, with a sentence where they are absent.
EXTRAS = {"tokenizers", "PIL"}
HEAVY = {"torch", "transformers", "pydantic", "onnx", "onnxscript", "safetensors", "sklearn", "scipy", "pandas"}


def files(package: str) -> list[Path]:
    return sorted((WHERE[package] / package).rglob("*.py"))


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the first part of every absolute import, at any depth of the file, also those by `__import__` and `import_module` of a literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield node.args[0].value.partition(".")[0]


@functools.cache
def imports_of(package: str) -> dict[str, list[str]]:
    """Return {imported top-level package: files that import it}."""
    found: dict[str, list[str]] = {}
    for path in files(package):
        for name in imported_names(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            found.setdefault(name, []).append(path.relative_to(WHERE[package]).as_posix())
    return found


def test_the_walker_sees_imports_wherever_they_hide() -> None:
    source = "import a.b\ndef f():\n    from c.d import e\n    if x:\n        import_module('g.h')\n        importlib.import_module('i')\nfrom . import j\n"
    assert list(imported_names(ast.parse(source))) in (["a", "c", "g", "i"], ["a", "c", "i", "g"])


@pytest.mark.parametrize("package", ["heron_proto", "heron_common", "heron_server", "heron_client"])
def test_every_root_holds_its_package(package: str) -> None:
    assert files(package), f"{WHERE[package] / package} has no Python files: move this test along with the package"


@pytest.mark.parametrize("package", list(WHERE))
def test_a_package_imports_only_packages_below_it(package: str) -> None:
    ours = {name: where for name, where in imports_of(package).items() if name.startswith("heron_") and name != package}
    wrong = {name: where for name, where in ours.items() if name not in MAY_IMPORT[package]}
    assert not wrong


@pytest.mark.parametrize("package", LEAN)
def test_a_package_of_the_lean_client_imports_nothing_heavy_anywhere(package: str) -> None:
    wrong = {name: where for name, where in imports_of(package).items() if name in HEAVY}
    assert not wrong


def test_common_needs_only_what_a_client_installs_plainly() -> None:
    allowed = set(sys.stdlib_module_names) | {"heron_common", "heron_proto", "numpy", "prometheus_client", "rich"}
    wrong = {name: where for name, where in imports_of("heron_common").items() if name not in allowed | EXTRAS}
    assert not wrong


def test_only_the_wire_modules_of_common_know_protobuf() -> None:
    found = imports_of("heron_common")
    assert found["heron_proto"] == ["heron_common/protocol/wire.py", "heron_common/protocol/wire_messages.py"]
    assert "google" not in found
    assert "grpc" not in found


@pytest.mark.process
def test_importing_every_module_of_the_client_loads_nothing_heavy_and_no_server() -> None:
    names = [
        ".".join(path.relative_to(WHERE[package]).with_suffix("").parts)
        for package in LEAN
        for path in files(package)
        if path.name != "__main__.py"
    ]
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n    importlib.import_module(name.removesuffix('.__init__'))\n"
        f"print(sorted({{name.partition('.')[0] for name in sys.modules}} & {HEAVY | EXTRAS | {'heron_server', 'heron_cli'}!r}))\n"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
