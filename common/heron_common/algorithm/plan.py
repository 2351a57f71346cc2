"""What an algorithm is: a plan (what a client does in a round) and what the server does around it, as frozen values.

An algorithm is a plan, not a subclass: every client runs every plan with the same loop. The table of presets is in `presets.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any

from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.options import option, with_options
from heron_common.specification.model_spec import ProgramKind

BACKWARD_EQUIVALENTS = 2.0
"""A backward pass costs two forward passes: one product for the input's gradient, one for the weights'."""


NO_WEIGHTS = "none"
"""Of `exact_weights`: all move by one estimator."""


class Objective(StrEnum):
    """Whose loss the front descends: a local head's, the server's by its scalars, or the server's by its gradients at the cut."""

    NONE = "none"
    AUXILIARY = "auxiliary"
    SERVER = "server"
    CUT_GRADIENT = "cut_gradient"


_JUDGED = {
    Objective.AUXILIARY: ProgramKind.LOSS,
    Objective.SERVER: ProgramKind.FRONT,
    Objective.CUT_GRADIENT: ProgramKind.SURROGATE,
}


class Estimator(StrEnum):
    """How a client finds its direction of descent.

    HYBRID: some weights by exact gradients of the local loss, those before them by differences of the same loss, in one step.
    """

    NONE = "none"
    ZEROTH_ORDER = "zeroth_order"
    FIRST_ORDER = "first_order"
    HYBRID = "hybrid"


class ClientOptimiser(StrEnum):
    """How a client turns an estimate or a gradient into a step; the state of all of them starts anew each round.

    SCALAR_ADAPTIVE: a step along directions whose length is `relative_step`, their derivatives being measured by a running mean of their squares.
    """

    SGD = "sgd"
    MOMENTUM = "momentum"
    ADAM = "adam"
    ADAMW = "adamw"
    SCALAR_ADAPTIVE = "scalar_adaptive"


class HeadTraining(StrEnum):
    """Who trains the auxiliary head: nobody (unused), the client with its front, the server first-order on the labels, or the server by alignment.

    ALIGNMENT keeps a head per client and fits its gradients at the cut to the back's (FSL-SAGE, arXiv 2505.23182).
    """

    NONE = "none"
    CLIENT = "client"
    SERVER = "server"
    ALIGNMENT = "alignment"


class DirectionScale(StrEnum):
    """The standard deviation of a direction's entries: 1, each tensor's root mean square, or that of all trained weights together.

    BLOCK_RMS is the last in one layer a round, the layers in turn, and 0 in the others: fewer weights move at a time, each by a better estimate.
    """

    UNIT = "unit"
    TENSOR_RMS = "tensor_rms"
    GLOBAL_RMS = "global_rms"
    BLOCK_RMS = "block_rms"


class LocalLosses(StrEnum):
    """Where a front that descends exact gradients has local losses: at its end alone, behind every block, or behind every second one.

    With several of them no gradient crosses from one to the next: each trains the blocks before it, up to the one before that. This is exact local
    learning, each loss with a head of its own.
    """

    END = "end"
    BLOCKS = "blocks"
    PAIRS = "pairs"


class ServerSchedule(StrEnum):
    """In which order the server trains on uploads: as they arrive, client after client, step after step, or a step's uploads mixed."""

    ARRIVAL = "arrival"
    SEQUENTIAL = "sequential"
    LOCKSTEP = "lockstep"
    SHUFFLED = "shuffled"


class Weighting(StrEnum):
    """How clients count in the average: by the rows the server received from them, or all alike."""

    EXAMPLES = "examples"
    UNIFORM = "uniform"


class UpdateEncoding(StrEnum):
    """What a client submits: the coefficients of its directions, or its resulting weights; AUTO leaves the choice to the server's counts."""

    AUTO = "auto"
    LOG = "log"
    DENSE = "dense"


@dataclass(frozen=True)
class Plan:
    """What a client does in one round. Sent with every assignment; complete, so that a client needs no table."""

    preset: str
    objective: Objective = field(metadata=option("whose loss the front descends: none, auxiliary, server or cut_gradient"))
    _: KW_ONLY
    estimator: Estimator = field(
        metadata=option(
            "how the client finds its direction: none, zeroth_order, first_order, or hybrid (exact_weights by gradients, the others by differences)"
        )
    )
    difference: FiniteDifference = field(metadata=option("forward or central"))
    distribution: DirectionDistribution = field(metadata=option("directions: rademacher, gaussian or sphere"))
    direction_groups: int = field(
        metadata=option("G, groups of the batch with a direction each (default: fixed from weight and FLOP counts)", at_least=1)
    )
    smoothing_radius: float = field(
        metadata=option(
            "mu, length of a perturbation in units of the direction's scale (default: the preset's, halved until finite differences are true)",
            above=0,
        )
    )
    head_training: HeadTraining = field(metadata=option("who trains the auxiliary head: none, client, server or alignment"))
    local_steps: int = field(metadata=option("h, steps a client takes in a round", at_least=1, common=True))
    upload_interval: int = field(metadata=option("k, steps from one upload to the next", at_least=1))
    batch_size: int = field(metadata=option("B, samples of a step", at_least=1))
    micro_batch: int = field(
        metadata=option("samples of one run of a program; changes memory only (default: fixed from activation bytes)", at_least=1)
    )
    optimiser: ClientOptimiser = field(
        metadata=option(
            "sgd, momentum, adam, adamw, or scalar_adaptive for zeroth-order steps; of estimator hybrid, that of the exact weights",
            name="client_optimiser",
        )
    )
    learning_rate: float = field(metadata=option("eta of the client's steps by another optimiser", name="client_learning_rate", above=0))
    clip_factor: float = field(
        metadata=option("directional derivatives beyond so many times the running 95 % quantile of their sizes are clipped", above=0)
    )
    num_directions: int = field(
        default=1, metadata=option("P, directions per group; each costs a pass and divides the variance", at_least=1)
    )
    wire_dtype: WireDtype = field(
        default=WireDtype.FLOAT32,
        metadata=option("activations and gradients at the cut travel as float32, float16, bfloat16 or int8 (a scale per row)"),
    )
    """Losses and finite differences are never quantised."""
    update_encoding: UpdateEncoding = field(
        default=UpdateEncoding.DENSE,
        metadata=option("what clients submit: dense (weights), log (coefficients, replayed bit for bit) or auto (the cheaper by counts)"),
    )
    momentum: float = field(
        default=0.9, metadata=option("momentum of client_optimiser momentum", name="client_momentum", at_least=0, below=1)
    )
    """Nine tenths is everybody's default."""
    weight_decay: float = field(
        default=0.0, metadata=option("decoupled weight decay of client_optimiser adamw", name="client_weight_decay", at_least=0)
    )
    relative_step: float = field(
        default=0.0,
        metadata=option(
            "rho, the length of a step of client_optimiser scalar_adaptive, or of estimator hybrid's differences, as a share of the norm of the run's first weights",
            above=0,
            at_most=1,
        ),
    )
    """0 where steps have a learning rate instead."""
    backward_equivalents: float = BACKWARD_EQUIVALENTS
    """What a backward pass counts as, in forward passes, by FLOPs that the server counted: less than two where the gradient ends within the front, more where
    its program runs blocks a second time instead of keeping what they computed."""

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
        return self.num_directions * (1 if self.difference is FiniteDifference.FORWARD else 2)

    @property
    def needs_cut_gradient(self) -> bool:
        """Whether every upload is answered with lambda, the gradients of its samples' losses at the cut."""
        return self.trains_front and self.objective is Objective.CUT_GRADIENT

    @property
    def waits_for_answers(self) -> bool:
        """Whether a step needs the server's answer to its own upload."""
        return self.num_probes > 0 or self.needs_cut_gradient

    @property
    def perturbs(self) -> bool:
        """Whether a step evaluates perturbed weights."""
        return self.estimator in (Estimator.ZEROTH_ORDER, Estimator.HYBRID)

    @property
    def takes_gradients(self) -> bool:
        """Whether a step descends exact gradients, of all weights or of some."""
        return self.estimator in (Estimator.FIRST_ORDER, Estimator.HYBRID)

    @property
    def steps_relatively(self) -> bool:
        """Whether a step along directions is a share of the weights' norm."""
        return self.estimator is Estimator.HYBRID or (self.perturbs and self.optimiser is ClientOptimiser.SCALAR_ADAPTIVE)

    @property
    def step_option(self) -> str:
        """The option that makes the front's steps shorter or longer, or both where there are two."""
        if not self.steps_relatively:
            return "--client-learning-rate"
        return "--relative-step and --client-learning-rate" if self.takes_gradients else "--relative-step"

    @property
    def logs(self) -> bool:
        """Whether the client submits its coefficients instead of its weights."""
        return self.perturbs and self.update_encoding is UpdateEncoding.LOG

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

    @property
    def judged_program(self) -> ProgramKind | None:
        """The program whose finite difference the plan takes; None where it takes none."""
        return _JUDGED[self.objective] if self.perturbs and self.objective is not Objective.NONE else None

    @property
    def directions_per_run(self) -> int:
        """M, groups that one run of a program takes, each with perturbed weights of its own; 1 where a group takes one run or several."""
        return max(1, self.micro_batch // self.group_size) if self.perturbs else 1


@dataclass(frozen=True)
class Alignment:
    """How the server fits each client's head to the gradients at the cut (FSL-SAGE, arXiv 2505.23182, alignment)."""

    interval_rounds: int = field(
        default=1, metadata=option("heads are aligned every so many rounds (fsl-sage)", name="alignment_interval_rounds", at_least=1)
    )
    """The paper's code aligns every tenth of its much longer rounds."""
    epochs: int = field(
        default=10,
        metadata=option("passes of an alignment over the rows that were kept (fsl-sage)", name="alignment_epochs", at_least=1),
    )
    _: KW_ONLY
    learning_rate: float = field(
        default=1e-3, metadata=option("Adam's rate of an alignment (fsl-sage)", name="alignment_learning_rate", above=0)
    )
    """As in the authors' code."""
    max_rows: int = field(
        default=1000,
        metadata=option("latest rows per client that an alignment uses (fsl-sage)", name="alignment_max_rows", at_least=1),
    )
    """As in the authors' code."""


@dataclass(frozen=True)
class Algorithm:
    """A plan and what the server does around it."""

    plan: Plan
    schedule: ServerSchedule = field(
        metadata=option(
            "order of training on uploads: arrival, sequential, lockstep (reproducible bit for bit) or shuffled (a step's uploads mixed)",
            name="server_schedule",
        )
    )
    _: KW_ONLY
    weighting: Weighting = field(metadata=option("how clients count in the average: examples or uniform"))
    direction_scale: DirectionScale = field(
        metadata=option(
            "entries of a direction: unit, tensor_rms (each tensor's root mean square), global_rms (that of all trained weights) or block_rms "
            "(that, in one layer a round)"
        )
    )
    scale_floor: float
    warmup_rounds: int = field(metadata=option("rounds in which only the server learns, before fronts move", at_least=0))
    final_rate_fraction: float = field(
        metadata=option(
            "the client's learning rate or relative step falls linearly over the run to this share of itself; 1 keeps it",
            at_least=0,
            at_most=1,
        )
    )
    aggregation: AggregationRule = field(
        default=AggregationRule.MEAN,
        metadata=option("mean, median, trimmed_mean (from five clients on), norm_clipped_mean or multi_krum (from five clients on)"),
    )
    train_weights: str = field(
        default="all",
        metadata=option(
            "which weights of the front move, whatever estimates their steps: all, norms, last-block, norms+last-block, last, norms+last, or a regular expression "
            "that names of weights match from their beginning"
        ),
    )
    exact_weights: str = field(
        default=NO_WEIGHTS,
        metadata=option(
            "which of them estimator hybrid moves by exact gradients, the others by differences: a choice as for train_weights, the last ones of the front; else none"
        ),
    )
    local_losses: LocalLosses = field(
        default=LocalLosses.END,
        metadata=option(
            "where a front of exact gradients has local losses: end, blocks (behind each block) or pairs (behind every second one); no gradient crosses them"
        ),
    )
    replicates_back: bool = False
    """Whether every client has a back of its own, averaged with the fronts at the end of a round (SFLV1, arXiv 2004.12088)."""
    alignment: Alignment = Alignment()
    rate_times_dimension: float = math.inf
    """The client's learning rate is at most this over the number of trained weights: plain zeroth-order descent is stable up to 1/(L d) only
    (Nesterov and Spokoiny 2017, theorem 8)."""

    def with_options(self, given: Mapping[str, Any]) -> Algorithm:
        """Return this algorithm with the options that were given, by name; a client's learning rate that was given is taken as it is."""
        algorithm = with_options(self, given)
        if "client_learning_rate" not in given:
            return algorithm
        return dataclasses.replace(algorithm, rate_times_dimension=math.inf)

    def rate_at_most(self, dimension: int) -> float:
        """Return the largest client learning rate for so many trained weights."""
        return self.rate_times_dimension / dimension

    def plan_for_round(self, round_index: int, num_rounds: int, *, rests: bool = False, step_factor: float = 1.0) -> Plan:
        """Return the plan of one round: the front rests while head and back warm up, then the length of a step decays linearly.

        Args:
            round_index, num_rounds: where in the run.
            rests: keep the front as it is, because it diverged.
            step_factor: the share of its step that it takes, less than 1 once a run had to go back.

        """
        if round_index < self.warmup_rounds or rests:
            return dataclasses.replace(self.plan, objective=Objective.NONE, estimator=Estimator.NONE)
        share = (1.0 - (1.0 - self.final_rate_fraction) * round_index / num_rounds) * step_factor
        return dataclasses.replace(self.plan, learning_rate=self.plan.learning_rate * share, relative_step=self.plan.relative_step * share)
