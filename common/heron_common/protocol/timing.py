"""One timeout is set, the server's liveness; everything that waits for the other side is derived from it, alike on both sides."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_LIVENESS_SECONDS = 30.0
"""Also what a client assumes until its join is answered."""

HEARTBEATS_PER_LIVENESS = 3
"""Two heartbeats may be lost before a client counts as departed."""

LONGEST_KEEPALIVE_SECONDS = 60.0
"""Below the four minutes after which common NATs drop a silent connection."""

LONGEST_CALL_DEADLINE_SECONDS = 30.0
"""A control call answers at once, whatever else is to be done."""

SHORTEST_HANDSHAKE_SECONDS = 5.0
"""A small device computes a handshake of TLS for a second or two."""

LONGEST_IDLE_SECONDS = 3600.0

LONGEST_STALL_SECONDS = 3600.0
"""What the time without progress grows to, doubling, where a network is that slow."""


@dataclass(frozen=True)
class Timing:
    """Derived times, so that a dead connection is noticed and replaced before the server gives its client up.

    A third of the liveness passes in silence until a ping, another third until its answer counts as lost; the last third is for the way back.
    """

    liveness_seconds: float = DEFAULT_LIVENESS_SECONDS

    @classmethod
    def from_heartbeat(cls, heartbeat_seconds: float) -> Timing:
        """Return the times of a server that asks for heartbeats so often."""
        return cls(heartbeat_seconds * HEARTBEATS_PER_LIVENESS)

    def by_name(self) -> dict[str, float]:
        """Return every time by its name."""
        derived = [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        return {name: getattr(self, name) for name in ("liveness_seconds", *derived)}

    @property
    def heartbeat_seconds(self) -> float:
        """From one sign of life of a training client to the next."""
        return self.liveness_seconds / HEARTBEATS_PER_LIVENESS

    @property
    def keepalive_seconds(self) -> float:
        """A connection that was silent for so long is pinged, by either side."""
        return min(self.heartbeat_seconds, LONGEST_KEEPALIVE_SECONDS)

    @property
    def ping_timeout_seconds(self) -> float:
        """A connection whose ping was not answered for so long is dead."""
        return self.keepalive_seconds

    @property
    def call_deadline_seconds(self) -> float:
        """How long a control call may take, at first."""
        return min(self.heartbeat_seconds, LONGEST_CALL_DEADLINE_SECONDS)

    @property
    def handshake_seconds(self) -> float:
        """A connection that has not greeted by then is closed."""
        return max(self.call_deadline_seconds, SHORTEST_HANDSHAKE_SECONDS)

    @property
    def idle_seconds(self) -> float:
        """A connection without a call for so long is closed: a client's asks come far more often, and whoever comes back opens another."""
        return min(2 * self.liveness_seconds, LONGEST_IDLE_SECONDS)

    @property
    def stall_seconds(self) -> float:
        """A stream on which nothing moved for so long, while it was the network's or the server's turn, is given up and begun again."""
        return min(self.liveness_seconds, LONGEST_STALL_SECONDS)
