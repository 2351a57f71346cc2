"""Numbers in texts as the rest of the world writes them: Python's own `1_000` is none."""

from __future__ import annotations


def decimal_number(text: str) -> float:
    """Return the number; "nan" and "inf" are read here and refused with the values.

    Raises:
        ValueError: it is none.

    """
    return float(_plain(text))


def whole_number(text: str) -> int:
    """Return the whole number.

    Raises:
        ValueError: it is none.

    """
    return int(_plain(text))


def is_whole_number(text: str) -> bool:
    """Return whether the text is a whole number."""
    try:
        whole_number(text)
    except ValueError:
        return False
    return True


def _plain(text: str) -> str:
    if "_" in text:
        raise ValueError(text)
    return text
