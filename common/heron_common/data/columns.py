"""Columns by name: a run that names its columns gets them in its own order from every file, whatever order they stand in there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from heron_common.data.rows import RowReader, StringRows
from heron_common.errors import DataError
from heron_common.specification.data_specification import MAX_COLUMNS, DataSpecification

_MOST_BYTES = 1 << 20
"""Of all names together: they travel in one message."""

_SHOWN = 20


def named_columns(rows: RowReader) -> tuple[str, ...]:
    """Return the names of a source's columns; nothing if it has none, they do not tell its columns apart, or they are too long to be sent."""
    return rows.columns if isinstance(rows, StringRows) and rows.is_named and _are_names(rows.columns) else ()


def with_columns(specification: DataSpecification, rows: RowReader) -> DataSpecification:
    """Return the specification with the names of these columns, if they are numbers in the run's shape and it names none yet."""
    return with_names(specification, named_columns(rows))


def with_names(specification: DataSpecification, names: tuple[str, ...], of_client: bool = False) -> DataSpecification:
    """Return the specification with these names of columns, where it has none and a sample has as many numbers; they are bounded and told apart."""
    fits = not specification.tokens and len(names) == math.prod(specification.input_shape)
    if specification.columns or not fits or not _are_names(names):
        return specification
    return dataclasses.replace(specification, columns=names, columns_of_client=of_client)


def _are_names(names: tuple[str, ...]) -> bool:
    told_apart = 0 < len(names) <= MAX_COLUMNS and "" not in names and len(set(names)) == len(names)
    return told_apart and sum(len(name.encode("utf-8", "replace")) for name in names) <= _MOST_BYTES


def in_order_of(specification: DataSpecification, rows: StringRows, source_name: str) -> StringRows:
    """Return the columns in the run's order, where the run has one.

    Who writes other names than the run's says with them what is meant by which, and is taken at their word; who writes * does not, nor who has nobody
    that compared the two: a client's names are not known to others.

    Raises:
        DataError: * stands for other columns than the run's, or written ones are others than a client's, or some of the run's at another place.

    """
    wanted = specification.columns
    if not wanted or not rows.is_named:
        return rows
    if len(set(rows.columns)) == len(rows.columns) and set(rows.columns) == set(wanted):
        return rows.picked([rows.columns.index(name) for name in wanted])
    if rows.is_rest:
        raise DataError(f"* of {source_name!r} should be the run's columns {shortened(wanted)}, but {_difference(rows.columns, wanted)}")
    moved = _moved(rows.columns, wanted)
    if moved is None and not specification.columns_of_client:
        return rows
    why = f"with {moved!r} at another place" if moved is not None else "as its first client names them"
    raise DataError(
        f"{source_name!r} names the columns {shortened(rows.columns)}, but those of the run are {shortened(wanted)}, {why}: give them the run's names, "
        "or name the run's columns in --data-spec on the server"
    )


def _moved(came: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return one of the run's names that stands at another place, though other names are there too."""
    places = {name: place for place, name in enumerate(wanted)}
    return next((name for place, name in enumerate(came) if places.get(name, place) != place), None)


def order_in_words(rows: RowReader, specification: DataSpecification | None = None) -> str:
    """Return the columns that a sample is read from, in order, and for a run who says so; empty where a source has no names for them."""
    if not isinstance(rows, StringRows) or not rows.is_named or (specification is not None and specification.tokens):
        return ""
    if specification is None or not (rows.is_rest or specification.columns):
        return shortened(rows.columns)
    if set(specification.columns) == set(rows.columns):
        return f"{shortened(specification.columns)} (the run's order)"
    known = "others" if specification.columns else "none yet, and takes those of the first client that has names"
    return f"{shortened(rows.columns)} (as they stand in this file: the run names {known})"


def shortened(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _difference(came: Sequence[str], wanted: Sequence[str]) -> str:
    missing, further = ([name for name in one if name not in other] for one, other in ((wanted, came), (came, wanted)))
    parts = [f"there is no {shortened(missing)}"] if missing else []
    parts += [f"there is {shortened(further)} too"] if further else []
    return f"{' and '.join(parts) or 'a name is there twice'}: write the columns instead of *, in the run's order, like a+b"
