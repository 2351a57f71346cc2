"""Options of the gates against poisoned uploads."""

from __future__ import annotations

from pydantic import Field, model_validator

from heron_server.configuration.section import Section, section_of, value_of
from heron_server.training.gates import GateSettings


class _Switch(Section):
    gates: bool = Field(
        False,
        description="refuse uploads whose activations or losses are far from the other clients', and set clients apart that keep sending such; "
        "off by default, for where every device is one's own there is nothing to gain",
    )


class GatesSection(section_of(GateSettings, base=_Switch)):  # type: ignore[misc]
    """What becomes of uploads that are unlike what the other clients send."""

    release_clients: str = Field("", description="names, with commas between them, of clients that are heard again from this start on")

    @model_validator(mode="after")
    def _factors_leave_room(self) -> GatesSection:
        for name in ("norm_factor", "loss_factor", "gradient_factor"):
            if 0 < getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be above 1, or what is usual would be refused, or 0 for never")
        return self

    @property
    def released(self) -> tuple[str, ...]:
        """The clients to release."""
        return tuple(name.strip() for name in self.release_clients.split(",") if name.strip())

    def settings(self) -> GateSettings | None:
        """Return the gates' settings; None if there are no gates."""
        return value_of(self, GateSettings) if self.gates else None
