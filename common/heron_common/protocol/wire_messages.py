"""Messages as values, to protobuf and back, in pairs `x_to_proto` and `x_from_proto`; what they are made of is in `wire.py`."""

from __future__ import annotations

import dataclasses
from typing import Any

from heron_common.protocol.messages import Assignment, LocalStatistics, Membership, NextStep, UploadAnswer, UploadLoss, Wait
from heron_common.protocol.messages import Finished as FinishedRun
from heron_common.protocol.wire import (
    MAX_TENSORS,
    blob_from_proto,
    blob_to_proto,
    data_specification_from_proto,
    data_specification_to_proto,
    few,
    model_from_proto,
    model_to_proto,
    plan_from_proto,
    plan_to_proto,
    program_from_proto,
    program_to_proto,
    round_from_proto,
    round_to_proto,
)
from heron_common.specification.data_specification import MAX_LENGTHS
from heron_common.specification.model_spec import ProgramKind
from heron_proto.v1 import split_training_pb2 as pb

SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.001, 3600.0
"""Between two questions of a client without work."""

MAX_LOSSES = 1 << 16
"""In an answer: far more uploads than a client has under way."""


def membership_to_proto(membership: Membership) -> pb.JoinResponse:
    """Encode the answer to a join."""
    return pb.JoinResponse(
        run_id=membership.run_id,
        session=membership.session,
        run_seed=membership.run_seed,
        data_specification=data_specification_to_proto(membership.data_specification),
        model=model_to_proto(membership.model),
        programs=[program_to_proto(program) for program in membership.programs],
        heartbeat_seconds=membership.heartbeat_seconds,
        num_rounds=membership.num_rounds,
        base=blob_to_proto(membership.base) if membership.base else None,
        held_out=membership.held_out,
        evaluation_batches=membership.evaluation_batches,
        plan=plan_to_proto(membership.plan) if membership.plan else None,
        server_time_seconds=membership.server_time_seconds,
    )


def membership_from_proto(message: pb.JoinResponse) -> Membership:
    """Decode the answer to a join."""
    return Membership(
        run_id=message.run_id,
        session=message.session,
        run_seed=message.run_seed,
        data_specification=data_specification_from_proto(message.data_specification),
        model=model_from_proto(message.model),
        programs=tuple(program_from_proto(program) for program in few(message.programs, len(ProgramKind) * MAX_LENGTHS, "programs")),
        heartbeat_seconds=message.heartbeat_seconds,
        num_rounds=message.num_rounds,
        base=blob_from_proto(message.base) if message.HasField("base") else None,
        held_out=message.held_out,
        evaluation_batches=message.evaluation_batches,
        plan=plan_from_proto(message.plan) if message.HasField("plan") else None,
        server_time_seconds=message.server_time_seconds,
    )


def assignment_to_proto(assignment: Assignment) -> pb.Assignment:
    """Encode an assignment."""
    return pb.Assignment(
        round=round_to_proto(assignment.round),
        plan=plan_to_proto(assignment.plan),
        client_model=blob_to_proto(assignment.client_model),
        auxiliary_head=blob_to_proto(assignment.auxiliary_head) if assignment.auxiliary_head else None,
        direction_scales=assignment.direction_scales,
        second_moment=assignment.second_moment,
        derivative_quantile=assignment.derivative_quantile,
        statistics=blob_to_proto(assignment.statistics) if assignment.statistics else None,
    )


def assignment_from_proto(message: pb.Assignment) -> Assignment:
    """Decode an assignment."""
    return Assignment(
        round=round_from_proto(message.round),
        plan=plan_from_proto(message.plan),
        client_model=blob_from_proto(message.client_model),
        auxiliary_head=blob_from_proto(message.auxiliary_head) if message.HasField("auxiliary_head") else None,
        direction_scales=tuple(few(message.direction_scales, 2 * MAX_TENSORS, "direction scales")),
        second_moment=message.second_moment,
        derivative_quantile=message.derivative_quantile,
        statistics=blob_from_proto(message.statistics) if message.HasField("statistics") else None,
    )


def next_step_to_proto(step: NextStep, losses: tuple[UploadLoss, ...]) -> pb.NextAssignmentResponse:
    """Encode what a client should do next."""
    encoded = [loss_to_proto(loss) for loss in losses]
    if isinstance(step, Assignment):
        return pb.NextAssignmentResponse(assignment=assignment_to_proto(step), losses=encoded)
    if isinstance(step, Wait):
        return pb.NextAssignmentResponse(wait=pb.Wait(seconds=step.seconds, reason=step.reason), losses=encoded)
    return pb.NextAssignmentResponse(finished=pb.Finished(reason=step.reason), losses=encoded)


def next_step_from_proto(message: pb.NextAssignmentResponse) -> NextStep:
    """Decode what to do next; an answer of a kind this version does not know is a short wait, and no wait is longer than LONGEST_WAIT_SECONDS."""
    which = message.WhichOneof("next")
    if which == "assignment":
        return assignment_from_proto(message.assignment)
    if which == "finished":
        return FinishedRun(message.finished.reason[:1000])
    seconds = message.wait.seconds
    # What is no time at all would make a client ask again and again without a pause.
    return Wait(min(seconds, LONGEST_WAIT_SECONDS) if seconds >= SHORTEST_WAIT_SECONDS else 1.0, message.wait.reason[:1000])


def loss_to_proto(loss: UploadLoss) -> pb.UploadLoss:
    """Encode the server's loss on an upload."""
    return pb.UploadLoss(
        round=round_to_proto(loss.round), local_step=loss.local_step, server_loss=loss.server_loss, server_version=loss.server_version
    )


def losses_from_proto(messages: Any) -> tuple[UploadLoss, ...]:
    """Decode the server's losses on uploads."""
    return tuple(
        UploadLoss(round_from_proto(m.round), m.local_step, server_loss=m.server_loss, server_version=m.server_version)
        for m in few(messages, MAX_LOSSES, "losses")
    )


def answer_to_proto(answer: UploadAnswer) -> pb.UploadAnswer:
    """Encode the answer to an upload."""
    return pb.UploadAnswer(
        server_version=answer.server_version, probe_losses=answer.probe_losses, losses=[loss_to_proto(loss) for loss in answer.losses]
    )


def answer_from_proto(message: pb.UploadAnswer) -> UploadAnswer:
    """Decode the answer to an upload."""
    return UploadAnswer(message.server_version, probe_losses=tuple(message.probe_losses), losses=losses_from_proto(message.losses))


def statistics_to_proto(statistics: LocalStatistics) -> pb.LocalStatistics:
    """Encode a client's own measurements."""
    return pb.LocalStatistics(**dataclasses.asdict(statistics))


def statistics_from_proto(message: pb.LocalStatistics) -> LocalStatistics:
    """Decode a client's own measurements."""
    return LocalStatistics(**{f.name: getattr(message, f.name) for f in dataclasses.fields(LocalStatistics)})
