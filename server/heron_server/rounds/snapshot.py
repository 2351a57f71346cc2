"""What people and tools are shown of a run: immutable, so that nobody who looks holds a lock that training waits for."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from heron_server.rounds.state import Phase


@dataclass(frozen=True)
class RunSnapshot:
    """A run as it was a moment ago."""

    round_index: int
    num_rounds: int
    _: KW_ONLY
    phase: Phase
    state: str
    """The phase, or whom it waits for, in words."""
    live_clients: int
    cohort_size: int
    bytes_up: int
    bytes_down: int
