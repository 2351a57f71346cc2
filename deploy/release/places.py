"""Every place outside of the code that names the release: list them, or set them all and the code to a new one.

`python deploy/release/places.py` lists; `python deploy/release/places.py 0.2.0` writes 0.2.0 into heron_common/version.py and into each place, and heads
CHANGELOG.md's unreleased part with it.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pins import ROOT
from wheel_contents import version

NUMBER = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"
SEARCHED = ("deploy", "docs", "README.md")
NAMED = re.compile(rf"(heron-(?:server|client)[:-]|heron_sfl-|^(?:appVersion|version): ){NUMBER}", re.MULTILINE)
"""Tags of images, names of files that a build makes, the chart."""

UNRELEASED = "## [Unreleased]\n"


class Place(NamedTuple):
    """A line that names a release."""

    path: Path
    line: int
    named: str


def files() -> Iterator[Path]:
    """Yield the files that may name it; results keep the release that they were measured with."""
    for start in SEARCHED:
        found = sorted((ROOT / start).rglob("*")) if (ROOT / start).is_dir() else [ROOT / start]
        kept = (path for path in found if path.suffix in (".md", ".yaml", ".yml", ".sh", ".Dockerfile"))
        yield from (path for path in kept if "results" not in path.parts)


def places() -> list[Place]:
    """Return every line that names a release."""
    found = []
    for path in files():
        text = path.read_text(encoding="utf-8")
        for match in NAMED.finditer(text):
            named = match[0].removeprefix(match[1])
            found.append(Place(path.relative_to(ROOT), text.count("\n", 0, match.start()) + 1, named))
    return found


def set_version(new: str, today: datetime.date) -> None:
    """Write a release everywhere."""
    for path in {place.path for place in places()}:
        text = (ROOT / path).read_text(encoding="utf-8")
        (ROOT / path).write_text(NAMED.sub(rf"\g<1>{new}", text), encoding="utf-8")
    code = ROOT / "common" / "heron_common" / "version.py"
    code.write_text(
        re.sub(rf'^VERSION = "{NUMBER}"', f'VERSION = "{new}"', code.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8"
    )
    changes = ROOT / "CHANGELOG.md"
    changes.write_text(headed(changes.read_text(encoding="utf-8"), new, today), encoding="utf-8")


def headed(changes: str, new: str, today: datetime.date) -> str:
    """Return the changelog with its unreleased part as a release of today, and an empty unreleased part before it."""
    return changes.replace(UNRELEASED, f"{UNRELEASED}\n## [{new}] - {today.isoformat()}\n", 1)


def main() -> int:
    """List, or set."""
    if len(sys.argv) == 1:
        print(f"the code: {version()}")
        print(*(f"{place.path}:{place.line}: {place.named}" for place in places()), sep="\n")
        return 0
    (new,) = sys.argv[1:]
    if not re.fullmatch(NUMBER, new):
        sys.exit(f"places.py: {new} is no version: expected something like 0.2.0 or 0.2.0rc1")
    set_version(new, datetime.datetime.now(datetime.UTC).date())
    return 0


if __name__ == "__main__":
    sys.exit(main())
