"""Text that others wrote, on its way to a terminal or a log: one line stays one line, and nothing in it acts on whoever reads it."""

from __future__ import annotations

import unicodedata


def printable(text: object) -> str:
    """Return text as one line that shows as it is.

    What moves a cursor, begins a line, sets a colour or a title, turns the direction of reading or cannot be seen at all is written as an escape, `\\x1b`.
    """
    words = str(text)
    return words if words.isprintable() else "".join(map(_shown, words))


def _shown(character: str) -> str:
    # Spaces of other scripts are no danger; str.isprintable() knows only one.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
