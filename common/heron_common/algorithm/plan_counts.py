"""What a round costs by its plan alone: passes on the client and bytes on the wire, as closed forms that a run's ledger must equal."""

from __future__ import annotations

from heron_common.algorithm.payload_shapes import cut_gradient_specs, update_specs, upload_specs
from heron_common.algorithm.plan import Estimator, HeadTraining, Objective, Plan
from heron_common.numerics.tensors import num_parameters, total_bytes
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.specification.model_spec import ModelSpec


def forward_equivalents(plan: Plan) -> float:
    """Return the passes of one sample's forward that a client makes in a round, a backward pass counting as the plan's `backward_equivalents`, b.

    A step of plan  none: 1 where it uploads. zeroth-order, forward difference: 1 + P; central: 2P, and 1 where it uploads; P directions per group.
    First-order on a local loss: 1 + b. Hybrid: 1 + b + P (forward) or 1 + b + 2P (central). On lambda, which comes after the upload: 1 for the upload, and
    again 1 + b, or for differences of <lambda, z> 1 + P (forward) or 2P (central).
    """
    return sum(_step_equivalents(plan, step) for step in range(plan.local_steps)) * plan.batch_size


def _step_equivalents(plan: Plan, local_step: int) -> float:
    sends = int(plan.sends_at(local_step))
    exact = 1 + plan.backward_equivalents
    if plan.estimator is Estimator.NONE:
        return sends
    if plan.estimator is Estimator.FIRST_ORDER:
        return sends + exact if plan.objective is Objective.CUT_GRADIENT else exact
    perturbed = plan.num_directions
    if plan.estimator is Estimator.HYBRID:
        return exact + (perturbed if plan.difference is FiniteDifference.FORWARD else 2 * perturbed)
    if plan.difference is FiniteDifference.CENTRAL:
        return sends + 2 * perturbed
    if plan.objective is Objective.CUT_GRADIENT:
        return sends + 1 + perturbed
    return 1 + perturbed


def round_bytes(plan: Plan, model: ModelSpec) -> dict[str, dict[str, int]]:
    """Return the payload bytes of one client's round, {"up": {kind: bytes}, "down": {kind: bytes}}; kinds without bytes are left out.

    Scalar answers ("losses"), control messages and programs are not counted: their sizes are the encoding's, not the plan's.
    Nor are held-out samples ("evaluation"): how many a client has is its own shard's affair. Of a run with several lengths of text these are the bytes
    at the greatest, and so the most that a round can have.
    """
    sending, uploads = len(plan.sending_steps), upload_specs(plan, model)
    up = {spec.name: sending * spec.size_bytes for spec in uploads} | {"update": total_bytes(update_specs(plan, model))}
    weights = num_parameters(model.client_model + model.statistics) + (num_parameters(model.auxiliary_head) if plan.needs_head else 0)
    down = {"weights": 4 * weights, "cut_gradient": sending * total_bytes(cut_gradient_specs(plan, model))}
    return {direction: {kind: size for kind, size in kinds.items() if size} for direction, kinds in (("up", up), ("down", down))}


def prefers_log(plan: Plan, model: ModelSpec) -> bool:
    """Whether a log of coefficients is the better submission: fewer bytes than the weights, and a replay that costs the server little.

    Counted, never timed: the replay makes h G P additions per weight; a server step's own work per uploaded sample is far above
    REPLAY_ADDITIONS_PER_BYTE additions for each byte that is saved.
    """
    trained = model.client_model + (model.auxiliary_head if plan.head_training is HeadTraining.CLIENT else ())
    directions = plan.local_steps * plan.direction_groups * plan.num_directions
    saved = 4 * num_parameters(trained) - 8 * directions
    return saved > 0 and directions * num_parameters(trained) <= REPLAY_ADDITIONS_PER_BYTE * saved


REPLAY_ADDITIONS_PER_BYTE = 1000
"""A byte on a slow uplink (1 Mbit/s) takes 8 microseconds, in which a server replays about a thousand additions."""
