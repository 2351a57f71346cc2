"""Replay a client's log of coefficients to the weights at which it arrived, and compare with the digest that it sent."""

from __future__ import annotations

import numpy as np

from heron_common.algorithm.payload_shapes import weight_specs
from heron_common.algorithm.plan import UpdateEncoding
from heron_common.algorithm.trained_tensors import perturbed_tensors
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import Float32Array, decode
from heron_common.numerics.update_log import replay, weights_digest
from heron_server.rounds.attempt import Attempt


def replay_update(attempt: Attempt, run_seed: int, *, client_id: str, log_bytes: bytes, weights_sha256: bytes) -> Float32Array:
    """Return the trained weights, flat, that a client's log arrives at.

    Raises:
        RefusedError: LOG_MISMATCH if they are not finite or not the ones that the digest names.

    """
    assignment = attempt.assignment
    (spec,) = weight_specs(assignment.plan, attempt.facts.model, UpdateEncoding.LOG)
    # Whatever finite coefficients a client sends, weights that they throw out of range are refused below, not warned about here.
    with np.errstate(over="ignore", invalid="ignore"):
        weights = replay(
            attempt.start,
            decode(log_bytes, spec),
            scales=np.array(assignment.direction_scales, np.float64),
            run_seed=run_seed,
            client_id=client_id,
            reference=assignment.round,
            layout=FlatLayout(perturbed_tensors(assignment.plan, attempt.facts.model)),
        )
    if weights_digest(weights) != weights_sha256 or not bool(np.isfinite(weights).all()):
        raise RefusedError(
            ErrorCode.LOG_MISMATCH,
            f"the log of client {client_id!r} does not arrive at the weights that its digest names: send the weights themselves",
        )
    return weights
