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

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def open_csv(argument: str) -> tuple[RowReader, RowReader]:
    """Open columns of samples and of labels. Every record is looked at once: a ragged one is refused here, not in the middle of a round.

    Raises:
        ConfigurationError: path or columns are not given.
        DataError: the file cannot be read, is not in the encoding, lacks a column or has one twice, or a record has another number of fields
            than the header.

    """
    rest, _, last = argument.rpartition(":")
    rest, encoding = (rest, last) if last in _ENCODINGS else (argument, _ENCODINGS[0])
    split = split_path(rest, 1, 2)
    if split is None:
        raise ConfigurationError(f"data source 'csv' needs a path and columns, not {argument!r}: write {CSV_USAGE}")
    path, names = split
    file = RecordFile(path)
    header = _index(file, encoding, names)
    label_places = _places(header, names[1], file) if len(names) > 1 else []
    rest_places = [place for place in range(len(header)) if place not in label_places]
    is_rest = names[0] == "*"
    sample_places = rest_places if is_rest else _places(header, names[0], file)

    def rows(places: Sequence[int], is_rest: bool = False) -> StringRows:
        def row(index: int) -> list[str]:
            try:
                fields = next(csv.reader([file.read(index).decode(encoding)], strict=True), [])
            except (UnicodeDecodeError, csv.Error):
                raise changed(path) from None
            if len(fields) != len(header):
                raise changed(path)
            return [fields[place] for place in places]

        return StringRows(len(file), [header[place] for place in places], row=row, place=file.place, is_rest=is_rest)

    why = f"{path} was opened without a label column, but labels are needed: name it behind the others, csv:PATH:COLUMN:LABEL_COLUMN"
    return rows(sample_places, is_rest), rows(label_places) if label_places else NoLabels(len(file), why)


def _index(file: RecordFile, encoding: str, names: Sequence[str]) -> list[str]:
    """Find every record, by the same reader that will read it, and return the header."""
    reader = csv.reader(file.lines(encoding, _REMEDY), strict=True)
    header: list[str] | None = None
    start, line_number = 0, 1
    try:
        for fields in reader:
            if header is None:
                header = fields
                _check_header(header, names, file)
            elif fields:
                if len(fields) != len(header):
                    raise DataError(
                        f"line {line_number} of {file.path} has {len(fields)} fields, but the header has {len(header)}: "
                        "mend the line, and put fields with a comma in quotes"
                    )
                file.add(start, line_number)
            start, line_number = file.offset, file.line_number + 1
    except csv.Error as exc:
        if header is None:
            _check_separator(file.first_line().decode(encoding, "replace"), file)
        raise DataError(
            f"line {line_number} of {file.path} is not CSV ({exc}): mend the line, and put fields with line ends in quotes"
        ) from exc
    if not header:
        raise DataError(f"{file.path} should begin with a header of column names, but begins with an empty line: add one")
    return header


def _check_header(header: list[str], names: Sequence[str], file: RecordFile) -> None:
    """Refuse a header that cannot be meant: one that other signs separate, or with a name twice, of which nobody knows which is asked for."""
    if len(header) == 1 and header[0] not in names:
        _check_separator(header[0], file)
    # Without a name a column cannot be asked for; programs that write the number of a row leave its name empty.
    twice = next((name for place, name in enumerate(header) if name and name in header[:place]), None)
    if twice is not None:
        places = [str(place) for place, name in enumerate(header, 1) if name == twice]
        raise DataError(
            f"the header of {file.path} has the name {twice!r} {len(places)} times (columns {', '.join(places)}): give every column its own name"
        )


def _check_separator(header: str, file: RecordFile) -> None:
    separator = next((sign for sign in _OTHER_SEPARATORS if sign in header), None)
    if separator is not None:
        raise DataError(
            f"the header of {file.path} has one column {header.strip()[:80]!r}: columns are separated by commas, not {_OTHER_SEPARATORS[separator]}, "
            "and numbers have a decimal point: save it so"
        )


def _places(header: list[str], text: str, file: RecordFile) -> list[int]:
    names = [text] if text in header else text.split("+")
    missing = [name for name in names if name not in header]
    if missing:
        raise DataError(f"{file.path} has no column {missing[0]!r}, only {', '.join(header)}: name one of these")
    if "" in names and header.count("") > 1:
        raise DataError(f"{file.path} has {header.count('')} columns without a name, so none of them can be asked for: give it a name")
    return [header.index(name) for name in names]
