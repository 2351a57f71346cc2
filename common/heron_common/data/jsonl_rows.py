"""Files with a JSON object a line: keys of text, of numbers and of labels, read line by line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from heron_common.data.record_file import RecordFile, changed, split_path
from heron_common.data.rows import NoLabels, RowReader, StringRows, check_characters
from heron_common.errors import ConfigurationError, DataError

JSONL_USAGE = "jsonl:PATH:KEY[:LABEL_KEY] (an object a line; prompt+completion as KEY for next-token with the prompt masked)"


def open_jsonl(argument: str) -> tuple[RowReader, RowReader]:
    """Open keys of samples and of labels. Every line is looked at once, so that a bad one is not met in the middle of a round.

    Raises:
        ConfigurationError: path or key are not given.
        DataError: the file cannot be read, a line is no JSON object, lacks a key or has it twice, or holds a character that is no text.

    """
    split = split_path(argument, 1, 2)
    if split is None:
        raise ConfigurationError(f"data source 'jsonl' needs a path and a key, not {argument!r}: write {JSONL_USAGE}")
    path, names = split
    sample_keys, label_keys = names[0].split("+"), names[1].split("+") if len(names) > 1 else []
    file = RecordFile(path)
    start = 0
    for line in file.lines("utf-8", "save the file as UTF-8"):
        if line.strip():
            strings = _fields(line, [*sample_keys, *label_keys], f"line {file.line_number} of {path}")
            check_characters(strings, lambda number: f"line {number} of {path}", file.line_number)
            file.add(start, file.line_number)
        start = file.offset

    def rows(keys: Sequence[str]) -> StringRows:
        def row(index: int) -> list[str]:
            try:
                line = file.read(index).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise changed(path) from None
            return _fields(line, keys, file.place(index))

        return StringRows(len(file), keys, row=row, place=file.place)

    why = f"{path} was opened without a label key, but labels are needed: name it behind the text's, jsonl:PATH:KEY:LABEL_KEY"
    return rows(sample_keys), rows(label_keys) if label_keys else NoLabels(len(file), why)


class _Repeated:
    """The value of a key that an object has more than once; Python's reader would take the last."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        record |= {key: _Repeated() for key, count in Counter(key for key, _ in pairs).items() if count > 1}
    return record


def _fields(line: str, keys: Sequence[str], place: str) -> list[str]:
    try:
        record = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{place} is not JSON ({exc}): write one object a line") from exc
    if not isinstance(record, dict):
        raise DataError(
            f"{place} should hold a JSON object, but holds {type(record).__name__} {str(record)[:40]!r}: write one object a line"
        )
    return [_string(record, key, place) for key in keys]


def _string(record: dict[str, object], key: str, place: str) -> str:
    if key not in record:
        raise DataError(f"{place} has no key {key!r}, only {', '.join(record) or 'none at all'}: name another key or mend the line")
    value = record[key]
    if isinstance(value, _Repeated):
        raise DataError(f"{place} has the key {key!r} more than once: keep one of them")
    # True is an int to Python, but no number to whoever wrote the file.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(
            f"{place} should have a string or a number under {key!r}, but has {json.dumps(value, default=str)[:40]}: mend the line"
        )
    return value if isinstance(value, str) else repr(value)
