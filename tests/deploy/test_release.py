"""A release names itself from one place, its changelog is in form, its bounds are those that are tested, its stubs are old enough for all of them."""

from __future__ import annotations

import datetime
import re
import tomllib
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from heron_common.version import VERSION
from tests.deploy.programs import DEPLOY, ROOT
from tests.deploy.release_scripts import script
from tests.harness.sources import IN_CHECKOUT, folder_of

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {requirement.name: requirement for requirement in map(Requirement, lines) if requirement.name != "heron-sfl"}


def pins() -> dict[str, str]:
    found: dict[str, str] = script("pins").pins()
    return found


def lower_bound(name: str) -> Version:
    (bound,) = (Version(clause.version) for clause in requirements()[name].specifier if clause.operator == ">=")
    return bound


def test_every_place_that_names_the_release_names_the_one_of_the_code() -> None:
    places = script("places").places()
    assert {place.named for place in places} == {VERSION}, [place for place in places if place.named != VERSION]
    expected = {f"deploy/{name}" for name in ("compose.yaml", "helm/heron/Chart.yaml", "helm/heron/values.yaml")}
    expected |= {f"deploy/docker/{name}.Dockerfile" for name in ("server", "client")} | {"docs/operate.md"}
    assert expected <= {place.path.as_posix() for place in places}


def test_chart_and_images_are_of_this_release() -> None:
    chart = yaml.safe_load((DEPLOY / "helm/heron/Chart.yaml").read_text())
    values = yaml.safe_load((DEPLOY / "helm/heron/values.yaml").read_text())
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert {values[side]["image"] for side in ("server", "client")} == {f"heron-{side}:{VERSION}" for side in ("server", "client")}
    ours = [service["image"] for service in services.values() if service.get("image", "").startswith("heron-")]
    assert ours and all(image.endswith(f":{VERSION}") for image in ours)


def test_what_is_built_takes_its_version_from_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "heron_common.version.VERSION"
    assert str(Version(VERSION)) == VERSION
    if IN_CHECKOUT:
        assert script("wheel_contents").version() == VERSION
    else:
        assert installed_version("heron-sfl") == VERSION


def test_the_changelog_has_the_form_of_keep_a_changelog_and_knows_this_release() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]" or headings[0].startswith(f"[{VERSION}] - "), headings[0]
    released = [re.fullmatch(r"\[(.+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings if heading != "[Unreleased]"]
    assert None not in released and headings.count("[Unreleased]") <= 1, headings
    numbers = [Version(found[1]) for found in released if found]
    dates = [datetime.date.fromisoformat(found[2]) for found in released if found]
    assert numbers == sorted(numbers, reverse=True) and dates == sorted(dates, reverse=True)
    assert all(number <= Version(VERSION) for number in numbers)
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE)) <= KINDS
    for part in CHANGELOG.split("\n## ")[1:]:
        kinds = re.findall(r"^### (.+)$", part, re.MULTILINE)
        assert len(kinds) == len(set(kinds)), "a kind of change has one list in each release"


def test_a_release_heads_what_was_unreleased() -> None:
    text = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A.\n\n## [0.1.0] - 2026-01-01\n"
    expected = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-02-03\n\n### Added\n\n- A.\n\n## [0.1.0] - 2026-01-01\n"
    assert script("places").headed(text, "0.2.0", datetime.date(2026, 2, 3)) == expected


def test_the_ends_that_are_tested_are_the_bounds_that_are_promised() -> None:
    versions = script("wire_versions")
    assert [Requirement(line).name for line in versions.lowest()] == list(versions.PACKAGES)
    for tested, promised in zip(versions.lowest(), versions.newest(), strict=True):
        requirement = Requirement(promised)
        assert requirement == requirements()[requirement.name]
        assert str(Requirement(tested).specifier) == f"=={lower_bound(requirement.name)}"
    assert "protobuf" in versions.PACKAGES and "grpcio" in versions.PACKAGES
    assert all((ROOT / path).is_file() for path in (*versions.TESTS, versions.CROSSED))


def test_the_stubs_run_on_every_protobuf_and_grpcio_that_is_allowed() -> None:
    stubs = folder_of("heron_proto") / "v1"
    generated_by = re.search(r"^# Protobuf Python Version: (.+)$", (stubs / "split_training_pb2.py").read_text(), re.MULTILINE)
    needs_grpcio = re.search(r"^GRPC_GENERATED_VERSION = '(.+)'$", (stubs / "split_training_pb2_grpc.py").read_text(), re.MULTILINE)
    assert generated_by is not None and needs_grpcio is not None
    assert lower_bound("protobuf") >= Version(generated_by[1])
    (limit,) = (Version(clause.version) for clause in requirements()["protobuf"].specifier if clause.operator == "<")
    # protobuf promises to run code of its own major version and of the one before, and of no other.
    assert limit.major - 1 <= Version(generated_by[1]).major + 1
    assert lower_bound("grpcio") == lower_bound("grpcio-health-checking") == Version(needs_grpcio[1]) == Version(pins()["grpcio-tools"])


def test_what_is_pinned_is_in_the_range_that_is_promised() -> None:
    pinned = pins()
    canonical = script("pins").canonical
    known = {name: requirement for name, requirement in requirements().items() if canonical(name) in pinned}
    assert len(known) > 20
    assert [f"{name} {pinned[canonical(name)]}" for name, one in known.items() if pinned[canonical(name)] not in one.specifier] == []
    assert {canonical(name) for name in requirements()} <= set(pinned)


def test_the_page_names_scripts_and_targets_that_exist() -> None:
    page = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"wheel-check", "test-versions", "sbom"} <= set(re.findall(r"\bmake ([a-z0-9-]+)", page)) <= targets
    named = set(re.findall(r"deploy/release/\w+\.py", page))
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("name", sorted(path.name for path in (DEPLOY / "release").glob("*.py")))
def test_a_script_of_a_release_says_what_it_is_for_and_names_no_registry(name: str) -> None:
    text = Path(DEPLOY / "release" / name).read_text(encoding="utf-8")
    assert text.startswith('"""') and "://" not in text and "--index-url" not in text
