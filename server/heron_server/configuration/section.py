"""What every group of options has in common, and how one is made of the options that values declare."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from heron_common.errors import ConfigurationError
from heron_common.options import option_fields, option_of

Value = TypeVar("Value")


COMMON: dict[str, Any] = {"common": True}
"""`json_schema_extra` of an option that `--help` shows; `--help-all` shows every option."""


def is_common(field: FieldInfo) -> bool:
    """Return whether `--help` shows a field's option."""
    return field.json_schema_extra == COMMON


class Section(BaseModel):
    """A group of options: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def section_of(*kinds: type, base: type[Section] = Section, overrides: bool = False) -> Any:
    """Return a section with the options that dataclasses declare, each with its bounds.

    Args:
        kinds: declare the options, in this order.
        base: has those that come before them.
        overrides: nothing is set by default, because every option replaces a value that is there already.

    """
    declared: dict[str, Any] = {}
    for kind in kinds:
        annotations = typing.get_type_hints(kind)
        for name, field in option_fields(kind).items():
            option, annotation = option_of(field), annotations[field.name]
            default: Any = field.default
            described = option.description
            if overrides:
                annotation, default = annotation | None, None
                described += "" if "(default" in described else " (default: the preset's)"
            elif default is dataclasses.MISSING:
                default = ...
            declared[name] = (
                annotation,
                Field(
                    default,
                    description=described,
                    ge=option.at_least,
                    gt=option.above,
                    le=option.at_most,
                    lt=option.below,
                    json_schema_extra=COMMON if option.common else None,
                ),
            )
    return create_model("Options", __base__=base, **declared)


def value_of(section: Section, kind: type[Value], **more: Any) -> Value:
    """Return the dataclass whose options a section has, with `more` for its other fields."""
    return kind(**{field.name: getattr(section, name) for name, field in option_fields(kind).items()}, **more)


def checked(check: Callable[[Any], Any], value: Any) -> Any:
    """Return what `check` makes of a value; pydantic collects ValueErrors with the option's name, where ours would hide every other mistake.

    Raises:
        ValueError: it is refused.

    """
    try:
        return check(value)
    except ConfigurationError as exc:
        raise ValueError(str(exc)) from exc


def told(error: Any) -> str:
    """Return what pydantic found wrong with a value, and the value where the words do not have it."""
    message = str(error["msg"]).removeprefix("Value error, ")
    is_told = not error["loc"] or isinstance(error["input"], dict | BaseModel) or repr(error["input"]) in message
    return message if is_told else f"{message}, not {error['input']!r}"
