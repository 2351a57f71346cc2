"""What a folder holds that is not read: counted, and said."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from heron_common.errors import DataError

HIDDEN = "hidden"


class LeftOut:
    """Counts files by the reason why they are not read."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()

    def add(self, path: Path, reason: str) -> None:
        """Count a file, or all files of a folder; those whose name begins with a dot, like those that macOS puts beside others, are only called hidden."""
        if path.name.startswith("."):
            self._reasons[HIDDEN] += 1
        elif path.is_dir():
            self._reasons[reason] += sum(len(files) for _, _, files in os.walk(path))
        else:
            self._reasons[reason] += 1

    def add_kind(self, path: Path) -> None:
        """Count a file of another kind than those that are read."""
        self.add(path, path.suffix or "without a suffix")

    @property
    def sentence(self) -> str:
        """How many files of which kind; empty if everything is read."""
        counts = [f"{count} {reason}" for reason, count in sorted(self._reasons.items()) if count]
        return f"{self._reasons.total()} ({', '.join(counts)})" if counts else ""

    @property
    def is_expected(self) -> bool:
        """Whether nothing but hidden files was left out."""
        return not any(count for reason, count in self._reasons.items() if reason != HIDDEN)


def listed(folder: Path) -> list[Path]:
    """Return what is in a folder, in the order of names.

    Raises:
        DataError: it cannot be read.

    """
    try:
        return sorted(folder.iterdir())
    except OSError as exc:
        raise DataError(f"cannot read {folder} ({exc.strerror or exc}): make it readable for this user") from exc
