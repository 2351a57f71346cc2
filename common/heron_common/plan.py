"""The algorithm table: what a client does in a round, as frozen values; a preset is a row.

An algorithm is a plan, not a subclass: every client runs every plan with the same loop.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum

from heron_common.directions import DirectionDistribution
from heron_common.errors import ConfigurationError
from heron_common.zeroth_order import FiniteDifference


class Objective(StrEnum):
    """Whose loss the front descends."""

    NONE = "none"
    AUXILIARY = "auxiliary"
    SERVER = "server"


class Estimator(StrEnum):
    """How a client finds its direction of descent."""

    NONE = "none"
    ZEROTH_ORDER = "zeroth_order"


class ClientOptimiser(StrEnum):
    """How a client turns an estimate into a step."""

    SGD = "sgd"
    ADAM = "adam"
    SCALAR_ADAPTIVE = "scalar_adaptive"


class HeadTraining(StrEnum):
    """Who trains the auxiliary head: nobody (unused), the client with its front, or the server first-order."""

    NONE = "none"
    CLIENT = "client"
    SERVER = "server"


class DirectionScale(StrEnum):
    """The standard deviation of a direction's entries: 1, each tensor's root mean square, or that of all trained weights together."""

    UNIT = "unit"
    TENSOR_RMS = "tensor_rms"
    GLOBAL_RMS = "global_rms"


class ServerSchedule(StrEnum):
    """In which order the server trains on uploads: as they arrive, client after client, or step after step."""

    ARRIVAL = "arrival"
    SEQUENTIAL = "sequential"
    LOCKSTEP = "lockstep"


class Weighting(StrEnum):
    """How clients count in the average: by the rows the server received from them, or all alike."""

    EXAMPLES = "examples"
    UNIFORM = "uniform"


@dataclass(frozen=True)
class Plan:
    """What a client does in one round. Sent with every assignment; complete, so that a client needs no table."""

    preset: str
    objective: Objective
    estimator: Estimator
    difference: FiniteDifference
    distribution: DirectionDistribution
    direction_groups: int
    smoothing_radius: float
    head_training: HeadTraining
    local_steps: int
    upload_interval: int
    batch_size: int
    micro_batch: int
    optimiser: ClientOptimiser
    learning_rate: float
    clip_factor: float

    @property
    def trains_front(self) -> bool:
        """Whether the front's weights change in this round."""
        return self.estimator is not Estimator.NONE

    @property
    def trains_head(self) -> bool:
        """Whether the client's step covers the auxiliary head too."""
        return self.trains_front and self.head_training is HeadTraining.CLIENT

    @property
    def needs_head(self) -> bool:
        """Whether the client evaluates the auxiliary head at all."""
        return self.trains_front and self.objective is Objective.AUXILIARY

    @property
    def num_probes(self) -> int:
        """How many perturbed copies of the batch's activations go up with each step: 0 unless the server judges them."""
        if self.objective is not Objective.SERVER or not self.trains_front:
            return 0
        return 1 if self.difference is FiniteDifference.FORWARD else 2

    def uploads_at(self, local_step: int) -> bool:
        """Whether the server trains on this step's activations."""
        return local_step % self.upload_interval == 0

    def sends_at(self, local_step: int) -> bool:
        """Whether anything goes up at this step: an upload, or probes for the server to judge."""
        return self.num_probes > 0 or self.uploads_at(local_step)

    @property
    def sending_steps(self) -> tuple[int, ...]:
        """The local steps at which something goes up, in order."""
        return tuple(step for step in range(self.local_steps) if self.sends_at(step))

    @property
    def group_size(self) -> int:
        """Samples that share a direction."""
        return self.batch_size // self.direction_groups


@dataclass(frozen=True)
class Algorithm:
    """A plan and what the server does around it."""

    plan: Plan
    schedule: ServerSchedule
    weighting: Weighting
    direction_scale: DirectionScale
    scale_floor: float
    warmup_rounds: int
    final_rate_fraction: float
    """The client's learning rate falls linearly over the run to this fraction of itself; 1 keeps it constant."""

    def plan_for_round(self, round_index: int, num_rounds: int) -> Plan:
        """Return the plan of one round: the front rests while head and back warm up, then the learning rate decays linearly."""
        if round_index < self.warmup_rounds:
            return dataclasses.replace(self.plan, objective=Objective.NONE, estimator=Estimator.NONE)
        progress = round_index / num_rounds
        rate = self.plan.learning_rate * (1.0 - (1.0 - self.final_rate_fraction) * progress)
        return dataclasses.replace(self.plan, learning_rate=rate)


_FORWARD_ONLY = Plan(
    preset="heron",
    objective=Objective.AUXILIARY,
    estimator=Estimator.ZEROTH_ORDER,
    difference=FiniteDifference.FORWARD,
    distribution=DirectionDistribution.RADEMACHER,
    direction_groups=0,
    smoothing_radius=1e-3,
    head_training=HeadTraining.SERVER,
    local_steps=10,
    upload_interval=1,
    batch_size=64,
    micro_batch=0,
    optimiser=ClientOptimiser.SCALAR_ADAPTIVE,
    learning_rate=4.0,
    clip_factor=4.0,
)
"""Zeros in direction_groups and micro_batch mean: the server fixes them from weight and FLOP counts."""

PRESETS: dict[str, Algorithm] = {
    # Ours: the best measured at the paper's client memory.
    "heron": Algorithm(_FORWARD_ONLY, ServerSchedule.ARRIVAL, Weighting.EXAMPLES, DirectionScale.GLOBAL_RMS, 1e-2, 1, 0.0),
    # arXiv 2601.09076, strictly: one unit-sphere direction a step over front and head together (in our convention of radius sqrt(d)),
    # forward difference, the client trains the head, uniform average, SFLV2's client-after-client server.
    "heron-paper": Algorithm(
        dataclasses.replace(
            _FORWARD_ONLY,
            preset="heron-paper",
            distribution=DirectionDistribution.SPHERE,
            direction_groups=1,
            head_training=HeadTraining.CLIENT,
            smoothing_radius=2e-4,
            optimiser=ClientOptimiser.SGD,
            learning_rate=3e-2,
            clip_factor=10.0,
        ),
        ServerSchedule.SEQUENTIAL,
        Weighting.UNIFORM,
        DirectionScale.UNIT,
        1e-2,
        0,
        0.0,
    ),
    # Differences of the per-sample losses that the server returns: no auxiliary head, no bias of a local loss (HOSL, arXiv 2601.10940, federated).
    "heron-server-loss": Algorithm(
        dataclasses.replace(_FORWARD_ONLY, preset="heron-server-loss", objective=Objective.SERVER, head_training=HeadTraining.NONE),
        ServerSchedule.ARRIVAL,
        Weighting.EXAMPLES,
        DirectionScale.GLOBAL_RMS,
        1e-2,
        1,
        0.0,
    ),
    # The control: the front keeps its first weights, only the server learns.
    "frozen": Algorithm(
        dataclasses.replace(
            _FORWARD_ONLY,
            preset="frozen",
            objective=Objective.NONE,
            estimator=Estimator.NONE,
            head_training=HeadTraining.NONE,
            direction_groups=1,
        ),
        ServerSchedule.ARRIVAL,
        Weighting.EXAMPLES,
        DirectionScale.UNIT,
        1e-2,
        0,
        1.0,
    ),
}


def preset(name: str) -> Algorithm:
    """Return a row of the table.

    Raises:
        ConfigurationError: there is no such preset; the message lists those that exist.

    """
    if name not in PRESETS:
        raise ConfigurationError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def plan_mistakes(plan: Plan) -> list[str]:
    """Return every mistake in a complete plan, each one sentence with what to write instead; empty if there is none."""
    counts = ("local_steps", "upload_interval", "batch_size", "direction_groups", "micro_batch")
    reals = (("smoothing_radius", plan.smoothing_radius), ("client_learning_rate", plan.learning_rate), ("clip_factor", plan.clip_factor))
    wrong = [name for name in counts if getattr(plan, name) < 1]
    mistakes = [f"{name} must be at least 1, not {getattr(plan, name)}: give a positive number" for name in wrong]
    mistakes += [
        f"{name} must be a positive finite number, not {value}: give one, or leave it to the preset"
        for name, value in reals
        if not (value > 0 and math.isfinite(value))
    ]
    return mistakes + _size_mistakes(plan, set(wrong)) + _relation_mistakes(plan)


def _size_mistakes(plan: Plan, wrong: set[str]) -> list[str]:
    mistakes: list[str] = []
    if not wrong & {"upload_interval", "local_steps"} and plan.upload_interval > plan.local_steps:
        mistakes.append(
            f"upload_interval {plan.upload_interval} exceeds local_steps {plan.local_steps}: the server would train once a round; lower it"
        )
    if wrong & {"batch_size", "direction_groups"}:
        return mistakes
    if plan.batch_size % plan.direction_groups:
        mistakes.append(f"direction_groups {plan.direction_groups} does not divide batch_size {plan.batch_size}: choose a divisor")
    elif "micro_batch" not in wrong and plan.group_size % plan.micro_batch:
        mistakes.append(f"micro_batch {plan.micro_batch} does not divide a group of {plan.group_size} samples: choose a divisor")
    return mistakes


def _relation_mistakes(plan: Plan) -> list[str]:
    mistakes: list[str] = []
    if plan.objective is Objective.NONE and plan.trains_front:
        mistakes.append(
            "objective=none gives estimator=zeroth_order nothing to descend: set objective to auxiliary or server, or estimator to none"
        )
    if plan.objective is Objective.AUXILIARY and plan.head_training is HeadTraining.NONE:
        mistakes.append("objective=auxiliary needs a head: set head_training to client or server, not none")
    if plan.objective is Objective.SERVER and plan.head_training is HeadTraining.CLIENT:
        mistakes.append("objective=server has no local head to train: set head_training to none or server, not client")
    return mistakes


def algorithm_mistakes(algorithm: Algorithm) -> list[str]:
    """Return every mistake in an algorithm whose plan is complete."""
    mistakes = plan_mistakes(algorithm.plan)
    if algorithm.plan.objective is Objective.SERVER and algorithm.schedule is ServerSchedule.SEQUENTIAL:
        mistakes.append("objective=server with server_schedule=sequential would idle every client but one: use arrival or lockstep")
    return mistakes
