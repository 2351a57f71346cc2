"""What every group of options has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from heron_common.errors import ConfigurationError


class Section(BaseModel):
    """A group of options: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def checked(check: Callable[[Any], Any], value: Any) -> Any:
    """Return what `check` makes of a value; pydantic collects ValueErrors with the option's name, where ours would hide every other mistake.

    Raises:
        ValueError: it is refused.

    """
    try:
        return check(value)
    except ConfigurationError as exc:
        raise ValueError(str(exc)) from exc
