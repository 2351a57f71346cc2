"""What the options of a model family have in common: a place to cut by name, or none."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict


class FamilyOptions(BaseModel):
    """Options of a model family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the places where the family can be cut, in the order of the computation; none if its options decide."""
        return ()

    def cut_at(self, place: str) -> Self:
        """Return the same options with the cut at a place.

        Raises:
            ValueError: the family has no such place.

        """
        raise NotImplementedError
