"""Options of the gates against poisoned uploads."""

from __future__ import annotations

from pydantic import Field, model_validator

from heron_server.configuration.section import Section
from heron_server.training.gates import GateSettings


class GatesSection(Section):
    """What becomes of uploads that are unlike what the other clients send."""

    gates: bool = Field(
        False,
        description="refuse uploads whose activations or losses are far from the other clients', and set clients apart that keep sending such; "
        "off by default, for where every device is one's own there is nothing to gain",
    )
    norm_factor: float = Field(
        10.0,
        ge=0,
        description="activations so many times larger or smaller than the median of the clients' are refused; clients that average their fronts "
        "differ by less than 2; 0 for never",
    )
    loss_factor: float = Field(
        2.0,
        ge=0,
        description="an upload is refused on which the server's loss is so many times the median of the clients' (or half of what it was at first, if that is "
        "more); honest clients with two classes each stay below it; 0 for never",
    )
    gradient_factor: float = Field(
        10.0, ge=0, description="a server step's gradient is shortened to so many times the median of the clients'; 0 for never"
    )
    gate_warmup_uploads: int = Field(
        64, ge=1, description="nothing is refused or shortened before so many uploads of at least three clients were trained on"
    )
    quarantine_after: int = Field(
        5, ge=0, description="strikes at which a client is set apart: a refused upload is one more, an accepted one less; 0 for never"
    )
    quarantine_rounds: int = Field(
        10, ge=1, description="rounds that a client is set apart, twice as many each time again; --release-clients hears it at once"
    )
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
        if not self.gates:
            return None
        return GateSettings(
            self.norm_factor,
            self.loss_factor,
            self.gradient_factor,
            self.gate_warmup_uploads,
            self.quarantine_after,
            self.quarantine_rounds,
        )
