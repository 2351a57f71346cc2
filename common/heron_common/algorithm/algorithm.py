"""A plan and what the server does around it: schedule, averages, scales, local losses, alignment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any

from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.algorithm.plan import Estimator, Objective, Plan
from heron_common.options import option, with_options

NO_WEIGHTS = "none"
"""Of `exact_weights`: all move by one estimator."""


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
