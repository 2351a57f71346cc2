"""The beginning of an attempt: what its members are handed out, and the digest of everything that their work depends on."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np

from heron_common.ids import RoundReference
from heron_common.protocol.messages import Assignment
from heron_common.specification.model_spec import BlobReference
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.jobs import RoundInputs
from heron_server.rounds.reopening import inputs_digest
from heron_server.storage.blobs import BlobStore


@dataclass(frozen=True)
class PreparedInputs:
    """What a round starts from, and its weights as the blobs that clients fetch."""

    inputs: RoundInputs
    front: BlobReference
    _: KW_ONLY
    head: BlobReference
    statistics: BlobReference | None
    heads: dict[str, BlobReference]


def prepare(inputs: RoundInputs, blobs: BlobStore) -> PreparedInputs:
    """Put the weights of `inputs` into `blobs`; digests take their time, so not under anybody's lock."""
    moving = [inputs.statistics] if inputs.statistics else []
    front, head, *others = blobs.put_round([inputs.front, inputs.head, *moving, *inputs.heads.values()])
    own = dict(zip(inputs.heads, others[len(moving) :], strict=True))
    return PreparedInputs(inputs, front, head=head, statistics=others[0] if moving else None, heads=own)


def begin_attempt(
    facts: RunFacts, num_rounds: int, *, prepared: PreparedInputs, reference: RoundReference, cohort: tuple[str, ...]
) -> tuple[Attempt, str]:
    """Return an attempt that starts from what was prepared, and the digest of that."""
    inputs = prepared.inputs
    plan = facts.algorithm.plan_for_round(reference.round_index, num_rounds, rests=inputs.rests, step_factor=inputs.step_factor)
    heads = {name: prepared.heads[name] for name in cohort if plan.needs_head and name in prepared.heads}
    assignment = Assignment(
        reference,
        plan,
        client_model=prepared.front,
        auxiliary_head=prepared.head if plan.needs_head else None,
        direction_scales=inputs.scales,
        second_moment=inputs.second_moment,
        derivative_quantile=inputs.derivative_quantile,
        statistics=prepared.statistics,
    )
    start = np.frombuffer(inputs.front + (inputs.head if plan.trains_head else b""), "<f4")
    attempt = Attempt(assignment, facts, cohort=cohort, start=start, heads=heads)
    return attempt, inputs_digest(assignment, {name: blob.sha256 for name, blob in heads.items()})
