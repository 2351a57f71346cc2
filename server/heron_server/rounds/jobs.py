"""What the owner of the round asks of the trainer's thread, and what a round starts from."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

from heron_common.algorithm.plan import Plan
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import Float32Array
from heron_server.rounds.accepted import AcceptedUpdate, AcceptedUpload


@dataclass(frozen=True)
class RoundInputs:
    """Weights and running statistics as little-endian float32 bytes, direction scales and running figures that a round starts from.

    `heads` are the clients' own, where they have some; `rests` keeps fronts as they are, because training them diverged.
    """

    front: bytes
    head: bytes
    _: KW_ONLY
    scales: tuple[float, ...]
    second_moment: float
    derivative_quantile: float = 0.0
    heads: dict[str, bytes] = field(default_factory=dict)
    rests: bool = False
    statistics: bytes = b""
    set_apart: tuple[str, ...] = ()
    """Clients that have no part in it."""
    step_factor: float = 1.0
    """The share of their step that fronts take, less than 1 once the run had to go back to a checkpoint."""
    ends_because: str = ""
    """Why it does not open: the run ends before its last round; empty otherwise."""


@dataclass(frozen=True)
class TrainJob:
    """Judge the probes of an upload if it has any, then train on its base activations if its step is an upload step.

    Several uploads are of one step and are mixed into as many batches.
    """

    uploads: tuple[AcceptedUpload, ...]
    plan: Plan


@dataclass(frozen=True)
class ScoreJob:
    """Score an upload of held-out samples with the back as it stands; train on nothing."""

    upload: AcceptedUpload
    plan: Plan


@dataclass(frozen=True)
class CloseJob:
    """Average these updates, evaluate, checkpoint. `rows[i]` is what the server counted for `updates[i]`."""

    round: RoundReference
    plan: Plan
    _: KW_ONLY
    updates: tuple[AcceptedUpdate, ...]
    rows: tuple[int, ...]
    cohort: tuple[str, ...]
    opened_at: float
    start: Float32Array
    scales: tuple[float, ...]


@dataclass(frozen=True)
class AbandonJob:
    """Go back to the last round boundary; `skips` says that the round then counts as done, without updates."""

    round: RoundReference
    reason: str
    _: KW_ONLY
    skips: bool = False
    num_members: int = 0


@dataclass(frozen=True)
class SaveJob:
    """Write a checkpoint inside the open round, so that the spool can give up what was trained."""

    round: RoundReference
    cohort: tuple[str, ...]
    _: KW_ONLY
    positions: int
    inputs: RoundInputs


Job = TrainJob | ScoreJob | CloseJob | AbandonJob | SaveJob
