"""CSV files with a header: columns of text, of numbers and of labels, read record by record."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from heron_common.data.record_file import RecordFile, changed, split_path
from heron_common.data.rows import NoLabels, RowReader, StringRows
from heron_common.errors import ConfigurationError, DataError

CSV_USAGE = (
    "csv:PATH:COLUMN[+COLUMN...][:LABEL_COLUMN][:latin-1] (header required; the text column, or the numeric ones, * for all but the label)"
)

_ENCODINGS = ("utf-8", "latin-1")
# Latin-1 gives every byte a character, so it is never guessed: a wrong guess would train on garbled text without a word.
_REMEDY = "save the file as UTF-8, or write :latin-1 behind the source"


def open_csv(argument: str) -> tuple[RowReader, RowReader]:
    """Open columns of samples and of labels. Every record is looked at once: a ragged one is refused here, not in the middle of a round.

    Raises:
        ConfigurationError: path or columns are not given.
        DataError: the file cannot be read, is not in the encoding, lacks a column, or a record has another number of fields than the header.

    """
    rest, _, last = argument.rpartition(":")
    rest, encoding = (rest, last) if last in _ENCODINGS else (argument, _ENCODINGS[0])
    split = split_path(rest, 1, 2)
    if split is None:
        raise ConfigurationError(f"data source 'csv' needs a path and columns, not {argument!r}: write {CSV_USAGE}")
    path, names = split
    file = RecordFile(path)
    header = _index(file, encoding)
    label_places = _places(header, names[1], file) if len(names) > 1 else []
    rest_places = [place for place in range(len(header)) if place not in label_places]
    sample_places = rest_places if names[0] == "*" else _places(header, names[0], file)

    def rows(places: Sequence[int]) -> StringRows:
        def row(index: int) -> list[str]:
            fields = next(csv.reader([file.read(index).decode(encoding)], strict=True), [])
            if len(fields) != len(header):
                raise changed(path)
            return [fields[place] for place in places]

        return StringRows(len(file), [header[place] for place in places], row, file.place)

    why = f"{path} was opened without a label column, but labels are needed: name it behind the others, csv:PATH:COLUMN:LABEL_COLUMN"
    return rows(sample_places), rows(label_places) if label_places else NoLabels(len(file), why)


def _index(file: RecordFile, encoding: str) -> list[str]:
    """Find every record, by the same reader that will read it, and return the header."""
    reader = csv.reader(file.lines(encoding, _REMEDY), strict=True)
    header: list[str] | None = None
    start, line_number = 0, 1
    try:
        for fields in reader:
            if header is None:
                header = fields
            elif fields:
                if len(fields) != len(header):
                    raise DataError(
                        f"line {line_number} of {file.path} has {len(fields)} fields, but the header has {len(header)}: "
                        "mend the line, and put fields with a comma in quotes"
                    )
                file.add(start, line_number)
            start, line_number = file.offset, file.line_number + 1
    except csv.Error as exc:
        raise DataError(
            f"line {line_number} of {file.path} is not CSV ({exc}): mend the line, and put fields with line ends in quotes"
        ) from exc
    if not header:
        raise DataError(f"{file.path} should begin with a header of column names, but begins with an empty line: add one")
    return header


def _places(header: list[str], text: str, file: RecordFile) -> list[int]:
    names = [text] if text in header else text.split("+")
    missing = [name for name in names if name not in header]
    if missing:
        raise DataError(f"{file.path} has no column {missing[0]!r}, only {', '.join(header)}: name one of these")
    return [header.index(name) for name in names]
