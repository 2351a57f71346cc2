"""Records of a text file, found once and read one by one: eight bytes of memory for where each begins, eight for its line."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from heron_common.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RecordFile:
    """A file and where its records begin; a record ends where the next begins."""

    def __init__(self, path: Path) -> None:
        """Open the file; `lines` then finds the records.

        Raises:
            DataError: it cannot be read.

        """
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise DataError(f"cannot read {path} ({exc.strerror or exc}): give the path of a file that this user may read") from exc
        self._starts = array("q")
        self._lines = array("q")
        self.line_number = 0
        self.offset = 0

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self, encoding: str, remedy: str) -> Iterator[str]:
        """Yield the file's lines with their ends; `offset` and `line_number` are those of the end of what was yielded.

        Raises:
            DataError: a line is not in the encoding; `remedy` says what to do then.

        """
        try:
            with self.path.open("rb") as file:
                for line in file:
                    self.line_number += 1
                    start = len(_BYTE_ORDER_MARK) if self.line_number == 1 and line.startswith(_BYTE_ORDER_MARK) else 0
                    self.offset += len(line)
                    yield line[start:].decode(encoding)
        except UnicodeDecodeError as exc:
            raise DataError(f"line {self.line_number} of {self.path} is not {encoding} ({exc.reason}): {remedy}") from exc
        except OSError as exc:
            raise DataError(f"cannot read {self.path} ({exc.strerror or exc}): give the path of a file that this user may read") from exc

    def first_line(self) -> bytes:
        """Return the beginning of the file's first line, at most a few thousand bytes of it."""
        return os.pread(self._descriptor, 4096, 0).removeprefix(_BYTE_ORDER_MARK).split(b"\n", 1)[0]

    def add(self, start: int, line_number: int) -> None:
        """Note where a record begins, in bytes and in lines."""
        self._starts.append(start)
        self._lines.append(line_number)

    def place(self, index: int) -> str:
        """Return where a record stands, for messages."""
        return f"line {self._lines[index]} of {self.path}"

    def read(self, index: int) -> bytes:
        """Return the bytes of one record.

        Raises:
            DataError: the file became shorter since it was opened.

        """
        start = self._starts[index]
        end = self._starts[index + 1] if index + 1 < len(self._starts) else self.offset
        data = os.pread(self._descriptor, end - start, start)
        if len(data) != end - start:
            raise changed(self.path)
        return data


def changed(path: Path) -> DataError:
    """Return the refusal of a file that is no longer what it was when it was opened."""
    return DataError(f"a record of {path} could not be read again: the file changed while it was in use, so start the client again")


def split_path(argument: str, least: int, most: int) -> tuple[Path, list[str]] | None:
    """Split `PATH:NAME:NAME` into a path, which may hold colons itself, and `least` to `most` names; None if there are too few."""
    parts = argument.split(":")
    choices = [(Path(":".join(parts[:-count])), parts[-count:]) for count in range(most, least - 1, -1) if len(parts) > count]
    return next((choice for choice in choices if choice[0].is_file()), choices[0]) if choices else None
