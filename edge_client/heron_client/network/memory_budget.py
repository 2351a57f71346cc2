"""What a run may ask of this device's memory: half of it. Said by counts before anything is allocated, so that no server fills a device.

The other half is for the runtime, for what a program computes between its inputs and outputs, and for whatever else the device does.
"""

from __future__ import annotations

from collections.abc import Iterable

from heron_common.algorithm.plan import Plan
from heron_common.errors import ProgramError
from heron_common.numerics.tensors import TensorSpec, num_parameters, total_bytes
from heron_common.process.process_memory import usable_memory
from heron_common.protocol.messages import Assignment, Membership
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ModelSpec, ProgramKind, ProgramReference

UNKNOWN_DEVICE_BYTES = 1 << 30
"""Taken for the device's memory where its kernel does not tell."""

_FLOAT_BYTES = 4
_SAMPLE_BYTES = 8
"""Of a number or token in the widest form in which a sample is read."""

_ROUND_COPIES = 8
"""Of trained weights in a round, at most: two snapshots for uploads, gradient, two moments, a dense direction in double width, the weights that came."""


def memory_budget() -> int:
    """Return how many bytes a run may ask for: half of the device's memory, or of what its control group leaves this process."""
    return (usable_memory() or UNKNOWN_DEVICE_BYTES) // 2


def check_membership_memory(membership: Membership, budget: int) -> None:
    """Refuse a run whose buffers, held from joining on, do not fit.

    Raises:
        ProgramError: they do not.

    """
    needed = _standing_bytes(membership)
    if needed > budget:
        raise ProgramError(f"the run's model and programs ask for {needed} bytes here, but at most {budget} may go to a run: {_REMEDY}")


def check_assignment_memory(assignment: Assignment, membership: Membership, budget: int) -> None:
    """Refuse a round that does not fit together with what is held already.

    Raises:
        ProgramError: it does not.

    """
    needed = _standing_bytes(membership) + round_memory(assignment.plan, membership)
    if needed > budget:
        raise ProgramError(f"the round asks for {needed} bytes here, but at most {budget} may go to a run: {_REMEDY}")


def round_memory(plan: Plan, membership: Membership) -> int:
    """Return the bytes that a round may add, at most, to what is held from joining on."""
    model, needed = membership.model, 0
    if plan.trains_front or plan.sending_steps:
        needed += _ROUND_COPIES * _FLOAT_BYTES * num_parameters(model.client_model + model.auxiliary_head)
    # The batch as it is read, in the form of the run, and lambda.
    sample = _elements(membership.data_specification) + model.labels.num_elements
    needed += 2 * _SAMPLE_BYTES * plan.batch_size * sample
    if plan.needs_cut_gradient:
        needed += _FLOAT_BYTES * plan.batch_size * model.cut.num_elements
    if plan.perturbs:
        # Recorded as float64, and once more as one array when the round ends.
        needed += 2 * 8 * plan.local_steps * plan.direction_groups * plan.num_directions
    return needed + 8 * plan.batch_size * (1 + plan.num_probes)


_REMEDY = "take a device with more memory, or have the server choose a smaller batch, cut or model"


def _standing_bytes(membership: Membership) -> int:
    model = membership.model
    weights = num_parameters(model.client_model + model.auxiliary_head)
    # theta and the working copies; programs hold the gradients and new statistics.
    standing = _FLOAT_BYTES * ((1 + membership.directions_per_run) * weights + num_parameters(model.statistics))
    return standing + sum(_program_bytes(program, membership) for program in membership.programs)


def _program_bytes(program: ProgramReference, membership: Membership) -> int:
    model: ModelSpec = membership.model
    rows = program.micro_batch
    per_row = _SAMPLE_BYTES * (_elements(membership.data_specification) + model.labels.num_elements)
    # Activations as the program writes them, lambda as it reads it, and both encoded on their way.
    per_row += 4 * _FLOAT_BYTES * model.cut.num_elements + 2 * _FLOAT_BYTES
    gradients = _all_weights(model) if program.kind in (ProgramKind.GRADIENT, ProgramKind.PULLBACK) else ()
    return rows * per_row + total_bytes(tuple(gradients)) + total_bytes(model.statistics) + program.blob.size_bytes


def _all_weights(model: ModelSpec) -> Iterable[TensorSpec]:
    return (*model.client_model, *model.auxiliary_head)


def _elements(data: DataSpecification) -> int:
    return TensorSpec("x", data.labels.dtype, data.input_shape).num_elements
