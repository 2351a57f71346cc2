"""Running text, in one file or a folder of .txt files: tokenised once into the cache and cut into windows there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from heron_common.data.file_rows import FileRows
from heron_common.data.left_out import LeftOut, listed
from heron_common.data.record_file import RecordFile
from heron_common.data.rows import NoLabels, RowReader
from heron_common.data.tokeniser import Tokeniser
from heron_common.data.unpacked import unpacked_once
from heron_common.errors import ConfigurationError, DataError
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import PADDING, DataSpecification

TEXT_USAGE = "text:PATH (a file, or a folder of .txt files, for next-token)"

_PIECE_CHARACTERS = 1 << 20


class TextFiles:
    """Files whose windows can be cut once the tokenizer and the length of a window are known."""

    shape: tuple[int, ...] = (0,)

    def __init__(self, files: Sequence[Path], left_out: LeftOut) -> None:
        self.left_out = left_out
        self._files = files

    def read(self, rows: Int64Array) -> npt.NDArray[Any]:
        """Refuse: windows are cut only for a run."""
        raise DataError(f"{self._files[0]} has no samples before its text is tokenised: join a run first")

    def fitted(self, specification: DataSpecification, tokeniser: Tokeniser | None) -> RowReader:
        """Return windows [n, T + 1] of tokens: T to read and, one further, T to predict.

        The last window of a file is filled with PADDING; no window spans two files.

        Raises:
            DataError: there is no tokenizer, a file is not UTF-8, or there are fewer than two tokens.

        """
        if tokeniser is None:
            raise DataError(f"{self._files[0]} is text, but the run names no tokenizer: choose a --model with one on the server")
        length = specification.input_shape[0]
        width = length + 1

        def write(output: BinaryIO) -> None:
            for path in self._files:
                _write_windows(path, tokeniser, length=length, output=output)

        # Raised when the same file gives other tokens than before: those of version 1 began with a byte order mark.
        path = unpacked_once(self._files, f"text2-{length}-{tokeniser.sha256[:16]}", write)
        count = path.stat().st_size // (4 * width)
        if count == 0:
            raise DataError(f"{self._files[0]} should hold at least two tokens, but holds fewer: give another text")
        return FileRows(path, 0, shape=(count, width), dtype=np.dtype("<i4"))


def open_text(argument: str) -> tuple[TextFiles, NoLabels]:
    """Open a file, or every .txt file of a folder in the order of their names; each is read once, so that a bad line is not met after joining.

    Raises:
        ConfigurationError: no path is given.
        DataError: there is no such file, the folder has none, or a line is not UTF-8.

    """
    if not argument:
        raise ConfigurationError("data source 'text' needs a path: write text:PATH")
    path = Path(argument)
    left_out = LeftOut()
    files = _text_files(path, left_out) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(
            f"{path} should be a text file or a folder with .txt files, but {'has none' if path.is_dir() else 'is not there'}: give another path"
        )
    for file in files:
        for _ in _lines(file):
            pass
    return TextFiles(files, left_out), NoLabels(
        0, f"running text like {path} has no labels: use it for next-token, and partition it by iid or sizes:ALPHA"
    )


def _text_files(folder: Path, left_out: LeftOut) -> list[Path]:
    files = []
    for child in listed(folder):
        if child.is_dir():
            left_out.add(child, "in folders within it")
        elif child.name.startswith(".") or child.suffix != ".txt":
            left_out.add_kind(child)
        else:
            files.append(child)
    return files


def _write_windows(path: Path, tokeniser: Tokeniser, *, length: int, output: BinaryIO) -> None:
    """Write a file's windows; each begins with the token that the one before had to predict last."""
    pending: list[int] = []
    for piece in _pieces(path):
        pending += tokeniser.plain(piece)
        whole = (len(pending) - 1) // length if pending else 0
        for start in range(0, whole * length, length):
            output.write(np.asarray(pending[start : start + length + 1], "<i4").tobytes())
        pending = pending[whole * length :]
    if len(pending) > 1:
        output.write(np.asarray(pending + [PADDING] * (length + 1 - len(pending)), "<i4").tobytes())


def _pieces(path: Path) -> Iterator[str]:
    """Yield a file's text in large pieces that end with a line, so that a book of any size is not held whole."""
    lines: list[str] = []
    size = 0
    for line in _lines(path):
        lines.append(line)
        size += len(line)
        if size >= _PIECE_CHARACTERS:
            yield "".join(lines)
            lines, size = [], 0
    yield "".join(lines)


def _lines(path: Path) -> Iterator[str]:
    """Yield a file's lines without a byte order mark, whatever they end with as Python's own reader has them."""
    for line in RecordFile(path).lines("UTF-8", "save the file as UTF-8"):
        yield line.replace("\r\n", "\n").replace("\r", "\n") if "\r" in line else line
