"""How long a run's programs take on this device, measured, and what a round of them will take, estimated by counts."""

from __future__ import annotations

import statistics
from dataclasses import KW_ONLY, dataclass

from heron_client.training.programs import Programs
from heron_common.algorithm.plan_counts import forward_equivalents, round_bytes
from heron_common.process.clock import Clock
from heron_common.protocol.messages import Membership
from heron_common.specification.model_spec import ProgramKind
from heron_common.terminal.figures import human_bytes

MOST_RUNS = 5
MOST_SECONDS = 2.0
"""Of runs beyond the first two, for each program: a slow device is told apart from a fast one by a single run."""

UPLINK_BYTES_PER_SECOND = 10e6 / 8
"""Ten megabits: what bytes are turned into seconds by, for nobody knows a device's uplink before it uploads."""

_BACKWARD = (ProgramKind.GRADIENT, ProgramKind.PULLBACK)


@dataclass(frozen=True)
class ProgramTiming:
    """One program, one run of one micro-batch."""

    kind: ProgramKind
    _: KW_ONLY
    length: int
    micro_batch: int
    seconds: float

    def forward_seconds(self, backward_equivalents: float) -> float:
        """Return those of one sample's forward pass, a backward pass counting as so many of them."""
        return self.seconds / self.micro_batch / (1 + backward_equivalents if self.kind in _BACKWARD else 1)

    def sentence(self) -> str:
        """Say it."""
        texts = f" of {self.length} tokens" if self.length else ""
        return f"{self.kind.value}: {self.seconds * 1e3:.3g} ms for {self.micro_batch} samples{texts}."


def time_programs(programs: Programs, clock: Clock) -> list[ProgramTiming]:
    """Load and run each program, shortest texts first; of several runs after the first the median counts.

    Raises:
        ProgramError: one cannot be loaded.

    """
    timings = []
    for kind, length in programs.places:
        program = programs.program(kind, length)
        program.run_again()
        seconds: list[float] = []
        begun = clock.now()
        while not seconds or (len(seconds) < MOST_RUNS and clock.now() - begun < MOST_SECONDS):
            started = clock.now()
            program.run_again()
            seconds.append(clock.now() - started)
        timings.append(ProgramTiming(kind, length=length, micro_batch=program.micro_batch, seconds=statistics.median(seconds)))
    return timings


def round_sentence(membership: Membership, timings: list[ProgramTiming]) -> str:
    """Estimate a round that trains: its passes at the slowest measured pace, and its bytes as the plan has them."""
    plan = membership.plan
    if plan is None:
        return "this server does not tell its plan before a round, so that time and bytes cannot be estimated."
    passes = forward_equivalents(plan)
    seconds = passes * max(timing.forward_seconds(plan.backward_equivalents) for timing in timings)
    counted = round_bytes(plan, membership.model)
    up, down = sum(counted["up"].values()), sum(counted["down"].values())
    return (
        f"about {seconds:.2g} s of computing for {passes:.0f} passes ({plan.local_steps} steps of {plan.batch_size} samples), {human_bytes(up)} up and "
        f"{human_bytes(down)} down; at 10 Mbit/s the upload alone takes {up / UPLINK_BYTES_PER_SECOND:.2g} s."
    )
