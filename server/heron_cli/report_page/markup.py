"""Pieces of HTML: everything that comes from a run is escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from heron_common.terminal.foreign_text import printable

Cell = str


def element(name: str, content: str, **attributes: str) -> str:
    """Return an element around markup; `class_` and `aria_label` become `class` and `aria-label`."""
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(printable(value))}"' for key, value in attributes.items())
    return f"<{name}{words}>{content}</{name}>"


def text(value: str) -> str:
    """Return text as markup."""
    return escape(printable(value))


def table(caption: str, columns: Sequence[str], *, rows: Iterable[Sequence[Cell]], numbers_from: int = 1) -> str:
    """Return a table of texts that scrolls by itself where it is too wide; columns from `numbers_from` on are set as numbers, the first names its row."""
    head = "".join(element("th", text(name), scope="col", class_=_kind(i, numbers_from)) for i, name in enumerate(columns))
    body = "".join(element("tr", "".join(_cell(i, cell, numbers_from) for i, cell in enumerate(row))) for row in rows)
    whole = element("caption", text(caption)) + element("thead", element("tr", head)) + element("tbody", body)
    return element("div", element("table", whole), class_="scrolls", tabindex="0", role="region", aria_label=caption)


def _cell(index: int, cell: str, numbers_from: int) -> str:
    if index == 0:
        return element("th", text(cell), scope="row", class_=_kind(index, numbers_from))
    return element("td", text(cell), class_=_kind(index, numbers_from))


def _kind(index: int, numbers_from: int) -> str:
    return "number" if index >= numbers_from else "name"


def section(identifier: str, title: str, *parts: str) -> str:
    """Return a section with a heading."""
    return element("section", element("h2", text(title), id=identifier) + "".join(parts), aria_labelledby=identifier)


def paragraph(words: str) -> str:
    """Return a paragraph of text."""
    return element("p", text(words))


def folded(title: str, content: str) -> str:
    """Return markup that shows when its title is chosen; no script is needed."""
    return element("details", element("summary", text(title)) + content)
