"""The commands that pages show, as a reader would type them, and the files that pages tell a reader to write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.(?:py|toml))\b")


@dataclass(frozen=True)
class Command:
    """One command of a page, its lines joined, its comment gone."""

    page: str
    text: str

    @property
    def program(self) -> str:
        """The first word."""
        return self.text.split()[0]

    def option(self, name: str, default: str) -> str:
        """Return the value of an option."""
        found = re.search(rf"{name} (\S+)", self.text)
        return found[1] if found else default


def commands_of(page: Path) -> list[Command]:
    """Return every command of a page's shell blocks, in order."""
    found = []
    for _, language, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "sh":
            lines = re.sub(r"\\\n *", "", body).splitlines()
            texts = (re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines)
            found += [Command(page.name, part) for text in texts if text for part in text.split(" && ")]
    return found


def write_files_of(page: Path, directory: Path) -> None:
    """Write the files whose name a block's first line tells."""
    for _, _, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        named = _FILE.match(body)
        if named:
            (directory / named[1]).write_text(body, encoding="utf-8")
