"""An option is declared once: in the metadata of the field that it sets. Sections, flags, variables, TOML keys and the reference page follow from that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

Value = TypeVar("Value")

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What an operator is told of a field, and between which bounds its value lies."""

    description: str
    _: KW_ONLY
    name: str
    """Of flag, variable and TOML key; empty where it is the field's."""
    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None
    common: bool
    """Whether `--help` shows it; `--help-all` shows every option."""


def option(
    description: str,
    *,
    name: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    common: bool = False,
) -> dict[str, Option]:
    """Return the metadata of a field that an operator may set: `steps: int = field(metadata=option("steps of a round", at_least=1))`."""
    return {_KEY: Option(description, name=name, at_least=at_least, above=above, at_most=at_most, below=below, common=common)}


def option_of(field: dataclasses.Field[Any]) -> Option:
    """Return what a field declares; it is one of `option_fields`."""
    declared: Option = field.metadata[_KEY]
    return declared


def option_fields(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass that are options, by the option's name, in order."""
    return {option_of(field).name or field.name: field for field in dataclasses.fields(kind) if _KEY in field.metadata}


def with_options(value: Value, given: Mapping[str, Any]) -> Value:
    """Return a value with the options that were given, by name, in its fields and in those of the values within it."""
    own = {field.name: given[name] for name, field in option_fields(value).items() if name in given}
    within = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}  # type: ignore[arg-type]
    changed = {name: with_options(part, given) for name, part in within.items() if dataclasses.is_dataclass(part)}
    return dataclasses.replace(value, **own, **changed)  # type: ignore[type-var]
