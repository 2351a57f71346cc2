"""The beginning of an attempt: what its members are handed out, and the digest of everything that their work depends on."""

from __future__ import annotations

import numpy as np

from heron_common.assignment import Assignment
from heron_common.ids import RoundReference
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.facts import RunFacts
from heron_server.rounds.jobs import RoundInputs
from heron_server.rounds.reopening import inputs_digest
from heron_server.storage.blobs import BlobStore


def begin_attempt(
    facts: RunFacts, num_rounds: int, blobs: BlobStore, inputs: RoundInputs, reference: RoundReference, cohort: tuple[str, ...]
) -> tuple[Attempt, str]:
    """Return an attempt that starts from `inputs`, whose weights go into `blobs`, and the digest of those."""
    plan = facts.algorithm.plan_for_round(reference.round_index, num_rounds, inputs.rests, inputs.step_factor)
    own = [name for name in cohort if plan.needs_head and name in inputs.heads]
    moving = [inputs.statistics] if inputs.statistics else []
    front, head, *others = blobs.put_round([inputs.front, inputs.head, *moving, *(inputs.heads[name] for name in own)])
    statistics, heads = (others[0] if moving else None), others[len(moving) :]
    assignment = Assignment(
        reference,
        plan,
        front,
        head if plan.needs_head else None,
        inputs.scales,
        inputs.second_moment,
        inputs.derivative_quantile,
        statistics,
    )
    start = np.frombuffer(inputs.front + (inputs.head if plan.trains_head else b""), "<f4")
    by_client = dict(zip(own, heads, strict=True))
    attempt = Attempt(assignment, facts.model, cohort, facts.algorithm.schedule, start, by_client, facts.evaluation_batches)
    return attempt, inputs_digest(assignment, {name: blob.sha256 for name, blob in by_client.items()})
