"""Options of the algorithm: each replaces one field of the preset's plan, or of what the server does around it."""

from __future__ import annotations

from typing import Any

from heron_common.algorithm.plan import Algorithm, Alignment, Plan
from heron_server.configuration.section import section_of


class PlanSection(section_of(Plan, Algorithm, Alignment, overrides=True)):  # type: ignore[misc]
    """What differs from the preset's plan; everything unset is the preset's."""

    @property
    def given(self) -> dict[str, Any]:
        """What was set, by the option's name."""
        return {name: value for name in PlanSection.model_fields if (value := getattr(self, name)) is not None}
