"""Is an assignment one that this client can carry out? Checked before a byte of weights is fetched."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from heron_client.network.memory_budget import check_assignment_memory
from heron_common.algorithm.plan import Estimator, Objective, Plan
from heron_common.algorithm.plan_checks import plan_mistakes
from heron_common.algorithm.trained_tensors import perturbed_tensors
from heron_common.errors import ProgramError
from heron_common.numerics.tensors import TensorSpec, total_bytes
from heron_common.protocol.messages import Assignment, Membership
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramKind

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWS_ACTIVATIONS = (ProgramKind.FRONT, ProgramKind.LOSS, ProgramKind.GRADIENT)


def check_assignment(assignment: Assignment, membership: Membership, memory_budget: int) -> None:
    """Refuse an assignment whose plan contradicts itself or the run, or whose figures are out of bounds; all mistakes at once.

    Raises:
        ProgramError: it is so; or the round does not fit into `memory_budget` bytes.

    """
    plan, model = assignment.plan, membership.model
    mistakes = plan_mistakes(plan) or [*_program_mistakes(plan, membership), *_figure_mistakes(assignment, model)]
    mistakes += _weight_mistakes(assignment, model)
    if mistakes:
        raise ProgramError(
            f"the server's assignment cannot be carried out ({'; '.join(mistakes[:4])}): check --server, or update the older side"
        )
    check_assignment_memory(assignment, membership, memory_budget)


def _program_mistakes(plan: Plan, membership: Membership) -> Iterator[str]:
    offered = {program.kind: program for program in membership.programs}
    wanted = _needed(plan)
    for kind in wanted:
        if kind not in offered:
            yield f"the plan needs the {kind.value} program, which was not named at joining"
    if not any(kind in offered for kind in _SHOWS_ACTIVATIONS):
        yield "no program computes activations"
    for program in offered.values():
        if program.micro_batch != plan.micro_batch:
            yield f"micro-batches have {plan.micro_batch} samples by the plan, but {program.micro_batch} by the {program.kind.value} program"
    judged = offered.get(plan.judged_program) if plan.judged_program is not None else None
    if judged is not None and judged.directions != plan.directions_per_run:
        yield f"a run takes {plan.directions_per_run} directions by the plan, but {judged.directions} by the {judged.kind.value} program"


def _needed(plan: Plan) -> tuple[ProgramKind, ...]:
    if not plan.trains_front:
        return ()
    if plan.objective is Objective.AUXILIARY:
        gradient = (ProgramKind.GRADIENT,) if plan.takes_gradients else ()
        return (*gradient, ProgramKind.LOSS) if plan.perturbs else gradient
    if plan.objective is Objective.CUT_GRADIENT:
        return (ProgramKind.PULLBACK if plan.takes_gradients else ProgramKind.SURROGATE,)
    return ()


def _figure_mistakes(assignment: Assignment, model: ModelSpec) -> Iterator[str]:
    plan, scales = assignment.plan, assignment.direction_scales
    perturbed = len(perturbed_tensors(plan, model))
    if plan.perturbs and len(scales) != perturbed:
        yield f"there is a direction scale for each of {perturbed} tensors that are perturbed, not {len(scales)}"
    if plan.trains_front and (model.without_gradient > 0) != (plan.estimator is Estimator.HYBRID):
        yield f"{model.without_gradient} tensors of the front are without gradients, which does not fit estimator={plan.estimator.value}"
    if not all(0 <= scale < math.inf for scale in scales):
        yield "direction scales are at least 0 and finite"
    for what, figure in (("second moment", assignment.second_moment), ("derivative quantile", assignment.derivative_quantile)):
        if not 0 <= figure < math.inf:
            yield f"the {what} is at least 0 and finite, not {figure}"


def _weight_mistakes(assignment: Assignment, model: ModelSpec) -> Iterator[str]:
    yield from _blob_mistakes(assignment.client_model, "the front's weights", model.client_model)
    if assignment.auxiliary_head is not None:
        yield from _blob_mistakes(assignment.auxiliary_head, "the head's weights", model.auxiliary_head)
    elif assignment.plan.needs_head:
        yield "the plan needs the head's weights, and none are named"
    if assignment.statistics is not None:
        yield from _blob_mistakes(assignment.statistics, "running statistics", model.statistics)
    elif model.statistics:
        yield "the model has running statistics, and none are named to start from"


def _blob_mistakes(blob: BlobReference, what: str, specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    if _DIGEST.fullmatch(blob.sha256) is None:
        yield f"the digest of {what} is 64 hexadecimal digits, not {blob.sha256[:80]!r}"
    if blob.size_bytes != total_bytes(specs):
        yield f"{what} take {total_bytes(specs)} bytes, not {blob.size_bytes}"
