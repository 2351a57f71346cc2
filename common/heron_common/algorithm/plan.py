"""What a client does in a round, as a frozen value; what the server does around it is in `algorithm.py`.

An algorithm is a plan, not a subclass: every client runs every plan with the same loop. The table of presets is in `presets.py`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum

from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.options import option
from heron_common.specification.model_spec import ProgramKind

BACKWARD_EQUIVALENTS = 2.0
"""A backward pass costs two forward passes: one product for the input's gradient, one for the weights'."""


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
