"""The pages under docs/: they build without a warning, fetch nothing from elsewhere, and name only options that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.reference import pages
from tests.harness.browser import open_browser
from tests.harness.sources import only_in_checkout

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"algorithm-defaults.md"}
WRITTEN = [*sorted(ROOT.glob("*.md")), *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in GENERATED)]
"""Pages that people write, not commands."""

EDITOR_COLUMNS = 120


def test_the_site_builds_with_warnings_as_errors_and_its_pages_fetch_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed: it comes with the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert built.returncode == 0, built.stdout + built.stderr
    made = sorted((tmp_path / "site").rglob("*.html"))
    assert len(made) > 20
    for page in made:
        fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\">]*", page.read_text(encoding="utf-8"))
        assert fetched == [], page.name


_SPILLED = """
const inside = (text, box, slack) => text.left >= box.left - slack && text.right <= box.right + slack && text.top >= box.top - slack && text.bottom <= box.bottom + slack;
const texts = [...document.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
const boxes = [...document.querySelectorAll('rect')].map(r => r.getBoundingClientRect());
const spilled = [];
for (const [words, text] of texts) {
  const middle = (text.top + text.bottom) / 2;
  const around = boxes.filter(b => middle > b.top && middle < b.bottom && text.left < b.right && text.right > b.left);
  if (around.some(box => !inside(text, box, 0.5))) spilled.push(words);
}
texts.forEach(([words, a], i) => texts.slice(i + 1).forEach(([others, b]) => {
  if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4) spilled.push(`${words} on ${others}`);
}));
return texts.length ? spilled : ['no text'];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_in_pictures_stay_in_their_boxes_and_off_each_other(tmp_path: Path, scheme: str) -> None:
    with open_browser(tmp_path) as browser:
        for picture in sorted((ROOT / "docs" / "pictures").glob("*.svg")):
            browser.show(picture, 1000, scheme)
            assert browser.run(_SPILLED) == [], picture.name


def test_commands_in_pages_have_only_options_that_exist() -> None:
    known = set(re.findall(r"`(--[a-z0-9-]+)`", pages()["options.md"])) | {"--help", "--config", "--version"}
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in re.findall(r"^heron(?:-server|-client)? .*(?:\\\n.*)*", block, re.MULTILINE):
                unknown = set(re.findall(r"--[a-z][a-z0-9-]*", line.partition("#")[0])) - known
                assert unknown == set(), f"{page.name}: {line}"


def test_every_measured_number_of_the_guide_to_algorithms_stands_in_the_results() -> None:
    results = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").glob("*.md"))
    guide = (ROOT / "docs" / "choose-an-algorithm.md").read_text(encoding="utf-8")
    scores = re.findall(r"\d+\.\d\d ± \d+\.\d\d", guide)
    assert len(scores) >= 15
    assert [score for score in scores if score not in results] == []
    rows = re.search(r"\| step \| peak MB.*?\n\n", guide, re.DOTALL)
    assert rows is not None
    for name, peak, seconds in re.findall(r"\| (`[a-z0-9-]+`) \| (\d+) \| ([\d.]+) \|", rows.group()):
        assert re.search(rf"\| {name} \| \d+ \| float32 \| {peak} \|.*\| {seconds} \|", results), name


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_prose_stands_in_lines_that_an_editor_shows(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in prose.splitlines() if len(line) > EDITOR_COLUMNS and not line.startswith("|")] == []


@only_in_checkout
def test_modules_that_pages_name_exist() -> None:
    folders = ("benchmarks", "common", "deploy", "edge_client", "examples", "proto", "server", "tests")
    modules = [f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 400
    for page in WRITTEN:
        named = re.findall(r"`([\w./]+\.py)(?:::\w+)?`", page.read_text(encoding="utf-8"))
        assert [name for name in named if not any(module.endswith(f"/{name}") for module in modules)] == [], page.name
