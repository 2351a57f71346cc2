"""Columns by name: a run that names its columns gets them in its own order from every file, whatever order they stand in there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from heron_common.data.rows import RowReader, StringRows
from heron_common.errors import DataError
from heron_common.specification.data_specification import MAX_COLUMNS, DataSpecification

_MOST_CHARACTERS = 1 << 20
"""Of all names together: a specification travels in one message."""

_SHOWN = 20


def named_columns(rows: RowReader) -> tuple[str, ...]:
    """Return the names of a source's columns; nothing if it has none, or they do not tell its columns apart."""
    if not isinstance(rows, StringRows) or not rows.is_named or "" in rows.columns or len(set(rows.columns)) < len(rows.columns):
        return ()
    return rows.columns


def with_columns(specification: DataSpecification, rows: RowReader) -> DataSpecification:
    """Return the specification with the names of these columns, if they are numbers in the run's shape and it names none yet."""
    names = named_columns(rows)
    fits = not specification.tokens and len(names) == math.prod(specification.input_shape) and len(names) <= MAX_COLUMNS
    if specification.columns or not fits or sum(map(len, names)) > _MOST_CHARACTERS:
        return specification
    return dataclasses.replace(specification, columns=names)


def in_order_of(specification: DataSpecification, rows: StringRows, source_name: str) -> StringRows:
    """Return the columns in the run's order, where the run has one.

    Who writes other names than the run's says with them what is meant by which, and is taken at their word; who writes * does not.

    Raises:
        DataError: * stands for other columns than the run's.

    """
    wanted = specification.columns
    if not wanted or not rows.is_named:
        return rows
    if len(set(rows.columns)) == len(rows.columns) and set(rows.columns) == set(wanted):
        return rows.picked([rows.columns.index(name) for name in wanted])
    if rows.is_rest:
        raise DataError(f"* of {source_name!r} should be the run's columns {shortened(wanted)}, but {_difference(rows.columns, wanted)}")
    return rows


def order_in_words(rows: RowReader, specification: DataSpecification | None = None) -> str:
    """Return the columns that a sample is read from, in order, and for a run who says so; empty where a source has no names for them."""
    if not isinstance(rows, StringRows) or not rows.is_named or (specification is not None and specification.tokens):
        return ""
    if specification is None or not (rows.is_rest or specification.columns):
        return shortened(rows.columns)
    if set(specification.columns) == set(rows.columns):
        return f"{shortened(specification.columns)} (the run's order)"
    return f"{shortened(rows.columns)} (as they stand in this file: the run names {'others' if specification.columns else 'none'})"


def shortened(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _difference(came: Sequence[str], wanted: Sequence[str]) -> str:
    missing, further = ([name for name in one if name not in other] for one, other in ((wanted, came), (came, wanted)))
    parts = [f"there is no {shortened(missing)}"] if missing else []
    parts += [f"there is {shortened(further)} too"] if further else []
    return f"{' and '.join(parts) or 'a name is there twice'}: write the columns instead of *, in the run's order, like a+b"
