"""A zeroth-order round as the list of its coefficients: applied by the client, recorded, and replayed bit for bit by the server.

A step is theta += fl32(a_g s_t) u_g for g = 0, 1, ... in order, one IEEE addition per weight and direction, so the same coefficients give the same bits
on every platform; a coefficient of zero adds nothing. Directions are derived from public seeds and never sent.
"""

from __future__ import annotations

import hashlib

import numpy as np

from heron_common.ids import RoundReference
from heron_common.numerics.directions import DirectionDistribution, Directions, derive_seed
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import Float32Array, Float64Array, raw_bytes


def step_directions(
    run_seed: int, client_id: str, *, reference: RoundReference, local_step: int, distribution: DirectionDistribution, layout: FlatLayout
) -> Directions:
    """Return the directions of one local step of a client's round; they depend on nothing else."""
    return Directions(
        derive_seed(run_seed, client_id, round_reference=reference, purpose="direction", index=local_step), distribution, layout
    )


def apply_coefficients(theta: Float32Array, coefficients: Float64Array, *, directions: Directions, scales: Float64Array) -> None:
    """Take one step in place: theta += fl32(a_g s_t) u_g, in order.

    A coefficient of zero is passed over: adding 0.0 to -0.0 makes 0.0, and the zeros that stand for a step that was not taken must change no bit.

    Args:
        theta: [num_parameters].
        coefficients: [directions], a_g.
        directions: u_g of this step.
        scales: [tensors], s_t.

    """
    directions.add_in_turn(np.outer(coefficients, scales), theta)


def replay(
    start: Float32Array,
    coefficients: Float64Array,
    *,
    scales: Float64Array,
    run_seed: int,
    client_id: str,
    reference: RoundReference,
    layout: FlatLayout,
) -> Float32Array:
    """Return the weights at which a client arrived, bit for bit, from those it started with and its log.

    Args:
        start: [num_parameters], untouched.
        coefficients: [local_steps, directions].
        scales: [tensors].
        run_seed, client_id, reference: what its directions derive from.
        layout: of the trained weights.

    """
    theta = start.copy()
    for local_step, row in enumerate(coefficients):
        directions = step_directions(
            run_seed, client_id, reference=reference, local_step=local_step, distribution=DirectionDistribution.RADEMACHER, layout=layout
        )
        apply_coefficients(theta, row, directions=directions, scales=scales)
    return theta


def weights_digest(theta: Float32Array) -> bytes:
    """Return the SHA-256 of flat float32 weights in little-endian order."""
    return hashlib.sha256(raw_bytes(np.ascontiguousarray(theta, "<f4"))).digest()
