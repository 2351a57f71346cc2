"""Options of the algorithm: each replaces one field of the preset's plan, or of what the server does around it."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from heron_common.algorithm.algorithm import Algorithm, Alignment
from heron_common.algorithm.plan import Plan
from heron_server.configuration.section import checked, section_of
from heron_server.models.train_weights import check_train_weights


class PlanSection(section_of(Plan, Algorithm, Alignment, overrides=True)):  # type: ignore[misc]
    """What differs from the preset's plan; everything unset is the preset's."""

    @field_validator("train_weights", "exact_weights")
    @classmethod
    def _chooses(cls, value: str | None) -> str | None:
        if value is not None:
            checked(check_train_weights, value)
        return value

    @property
    def given(self) -> dict[str, Any]:
        """What was set, by the option's name."""
        return {name: value for name in PlanSection.model_fields if (value := getattr(self, name)) is not None}
