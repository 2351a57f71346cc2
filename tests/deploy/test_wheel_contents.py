"""What the check of a wheel finds: a file too few, a file too many, a licence, command or metadata that is not ours."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from heron_common.version import VERSION
from tests.deploy.release_scripts import script
from tests.harness.sources import only_in_checkout

pytestmark = only_in_checkout
DESCRIBED = f"heron_sfl-{VERSION}.dist-info"
PACKAGED = {"heron_common/__init__.py", "heron_common/py.typed", "heron_proto/v1/split_training.proto"}


def metadata() -> str:
    project = script("pins").project()
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {VERSION}", f"Summary: {project['description']}"]
    lines += [f"Requires-Python: {project['requires-python']}", f"License-Expression: {project['license']}"]
    lines += ["Description-Content-Type: text/markdown", *(f"Requires-Dist: {line}" for line in project["dependencies"])]
    lines += ["Requires-Dist: torch>=2.9; extra == 'server'", *(f"Provides-Extra: {extra}" for extra in project["optional-dependencies"])]
    return "\n".join(lines) + "\n\nA page.\n"


def commands() -> str:
    return "[console_scripts]\n" + "".join(f"{name} = {place}\n" for name, place in script("pins").project()["scripts"].items())


def wheel(folder: Path, changed: dict[str, str | None]) -> Path:
    """Return a wheel that is as it should be but for what is changed; None leaves a file out."""
    content: dict[str, str | None] = dict.fromkeys(PACKAGED, "")
    content |= {f"{DESCRIBED}/METADATA": metadata(), f"{DESCRIBED}/entry_points.txt": commands(), f"{DESCRIBED}/licenses/LICENSE": "Apache"}
    path = folder / f"heron_sfl-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (content | changed).items():
            if text is not None:
                archive.writestr(name, text)
    return path


def test_nothing_is_found_in_a_wheel_that_is_as_it_should_be(tmp_path: Path) -> None:
    assert script("wheel_contents").findings(wheel(tmp_path, {}), PACKAGED) == []


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("heron_common/py.typed", None, "heron_common/py.typed is in the repository and not in the wheel"),
        ("heron_proto/v1/split_training.proto", None, "split_training.proto is in the repository and not in the wheel"),
        ("tests/test_secret.py", "", "tests/test_secret.py is in the wheel and git does not know it"),
        ("deploy/watching/dashboard.py", "", "deploy/watching/dashboard.py is in the wheel and git does not know it"),
        (f"{DESCRIBED}/licenses/LICENSE", None, "LICENSE is not in the wheel"),
        (f"{DESCRIBED}/entry_points.txt", "[console_scripts]\nheron = other:main\n", "the wheel's commands are {'heron': 'other:main'}"),
        (f"{DESCRIBED}/METADATA", None, f"it is not of version {VERSION}"),
    ],
)
def test_a_wheel_that_is_not_as_it_should_be_is_found_out(tmp_path: Path, name: str, text: str | None, finding: str) -> None:
    (found,) = script("wheel_contents").findings(wheel(tmp_path, {name: text}), PACKAGED)
    assert finding in found


def test_metadata_that_is_not_the_projects_is_found_out(tmp_path: Path) -> None:
    wrong = metadata().replace("Apache-2.0", "MIT").replace("Requires-Dist: numpy", "Requires-Dist: torch>=2\nRequires-Dist: numpy")
    found = script("wheel_contents").findings(wheel(tmp_path, {f"{DESCRIBED}/METADATA": wrong}), PACKAGED)
    assert len(found) == 2
    assert found[0] == "License-Expression is 'MIT' in the wheel, expected 'Apache-2.0'"
    assert found[1].startswith("without extras the wheel requires [") and "torch>=2" in found[1]
