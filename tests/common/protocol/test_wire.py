"""Domain values to protobuf bytes and back: every pair is the identity, and what this version does not know is refused in a sentence."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from heron_common.algorithm.plan import ClientOptimiser, Estimator, HeadTraining, Objective, Plan, UpdateEncoding
from heron_common.algorithm.presets import PRESETS
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.tensors import MAX_RANK, DType, TensorSpec
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.protocol import wire, wire_messages
from heron_common.protocol.messages import Assignment, Finished, LocalStatistics, Membership, UploadAnswer, UploadLoss, UploadPurpose, Wait
from heron_common.specification.data_specification import DataSpecification, Task
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramKind, ProgramReference
from heron_proto.v1 import split_training_pb2 as pb

BLOB = BlobReference("ab" * 32, 2**40)
ROUND = RoundReference(17, 3)
PLAN = dataclasses.replace(
    PRESETS["heron"].plan,
    direction_groups=16,
    micro_batch=4,
    smoothing_radius=1 / 3,
    learning_rate=0.1,
    update_encoding=UpdateEncoding.LOG,
)
ASSIGNMENT = Assignment(
    ROUND, PLAN, client_model=BLOB, auxiliary_head=BlobReference("cd" * 32, 1), direction_scales=(0.1, 1 / 3), second_moment=1e-17
)
LOSSES = (
    UploadLoss(ROUND, 4, server_loss=0.5, server_version=2**40),
    UploadLoss(RoundReference(0, 0), 0, server_loss=-2.25, server_version=0),
)
MODEL = ModelSpec(
    (TensorSpec("client_model.0", DType.FLOAT32, (4, 1, 3, 3)), TensorSpec("client_model.1", DType.FLOAT32, ())),
    (TensorSpec("auxiliary_head.0", DType.FLOAT32, (10, 16)),),
    cut=TensorSpec("cut", DType.FLOAT32, (16,)),
)
NORMALISING = dataclasses.replace(
    MODEL, statistics=tuple(TensorSpec(f"front.1.{n}", DType.FLOAT32, (4,)) for n in ("running_mean", "running_var"))
)
MEMBERSHIP = Membership(
    run_id="r" * 32,
    session="s" * 32,
    run_seed=2**64 - 1,
    data_specification=DataSpecification(
        "digits", (1, 8, 8), num_classes=10, mean=4.8, standard_deviation=16.0, columns=tuple(f"p{place}" for place in range(64))
    ),
    model=MODEL,
    programs=(ProgramReference(ProgramKind.LOSS, BLOB, micro_batch=4), ProgramReference(ProgramKind.FRONT, BLOB, micro_batch=64)),
    heartbeat_seconds=2.5,
    num_rounds=60,
)

OF_TEXT = dataclasses.replace(
    MEMBERSHIP,
    data_specification=DataSpecification(
        "tweets",
        (32,),
        num_classes=3,
        task=Task.CLASSIFICATION,
        tokens=True,
        class_names=("negative", "neutral", "positive"),
        channel_means=(0.5, 0.25),
        channel_deviations=(1.5, 2.0),
        tokenizer=BLOB,
        refuses_overlong=True,
        lengths=(8, 32),
    ),
    model=dataclasses.replace(
        MODEL,
        labels=TensorSpec("labels", DType.INT64, (32,)),
        context=(TensorSpec("mask", DType.UINT8, (32,)),),
        base=(TensorSpec("wte.weight", DType.INT8, (50, 8)), TensorSpec("wpe.weight", DType.BFLOAT16, (32, 8))),
        lengths=(8, 32),
    ),
    programs=tuple(ProgramReference(ProgramKind.LOSS, BLOB, micro_batch=4, length=length) for length in (8, 32)),
    base=BLOB,
)

DOMAIN_AND_WIRE = [
    (DType, pb.DType, "DTYPE"),
    (Task, pb.Task, "TASK"),
    (ProgramKind, pb.ProgramKind, "PROGRAM_KIND"),
    (UploadPurpose, pb.UploadPurpose, "UPLOAD_PURPOSE"),
    (Objective, pb.Objective, "OBJECTIVE"),
    (Estimator, pb.Estimator, "ESTIMATOR"),
    (FiniteDifference, pb.FiniteDifference, "FINITE_DIFFERENCE"),
    (DirectionDistribution, pb.DirectionDistribution, "DIRECTION_DISTRIBUTION"),
    (HeadTraining, pb.HeadTraining, "HEAD_TRAINING"),
    (ClientOptimiser, pb.ClientOptimiser, "CLIENT_OPTIMISER"),
]


def sent(message: Any) -> Any:
    """Return the message as the other side parses it."""
    return type(message).FromString(message.SerializeToString())


def through_the_wire(kind: str, value: Any) -> Any:
    module = wire if hasattr(wire, f"{kind}_to_proto") else wire_messages
    return getattr(module, f"{kind}_from_proto")(sent(getattr(module, f"{kind}_to_proto")(value)))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("tensor_spec", spec) for spec in (*MODEL.client_model, TensorSpec("", DType.INT64, (2**62,) * MAX_RANK))),
        ("blob", BLOB),
        ("blob", BlobReference("", 0)),
        ("round", ROUND),
        ("round", RoundReference(2**32 - 1, 0)),
        ("membership", MEMBERSHIP),
        ("membership", OF_TEXT),
        ("membership", dataclasses.replace(MEMBERSHIP, programs=(), model=dataclasses.replace(MODEL, auxiliary_head=()))),
        ("assignment", ASSIGNMENT),
        ("assignment", dataclasses.replace(ASSIGNMENT, auxiliary_head=None, direction_scales=())),
        ("assignment", dataclasses.replace(ASSIGNMENT, statistics=BlobReference("ef" * 32, 96))),
        ("membership", dataclasses.replace(MEMBERSHIP, model=NORMALISING)),
        ("answer", UploadAnswer(2**40, probe_losses=(0.5, -1.25), losses=LOSSES)),
        ("answer", UploadAnswer(0, probe_losses=(), losses=())),
        ("statistics", LocalStatistics()),
        (
            "statistics",
            LocalStatistics(
                second_moment=1 / 3,
                mean_local_loss=-0.1,
                forward_passes=2**40,
                differences=5,
                difference_mean=0.1,
                difference_variance=1e-300,
                differences_clipped=6,
                differences_non_finite=7,
                step_seconds=1.5,
                upload_wait_seconds=2.5,
                peak_memory_bytes=2**40,
                peak_anonymous_bytes=2**39,
            ),
        ),
    ],
)
def test_values_come_back_as_they_were_sent(kind: str, value: Any) -> None:
    assert through_the_wire(kind, value) == value


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("round_index", [0, 5])
def test_the_plan_of_every_preset_comes_back_as_it_was_sent(name: str, round_index: int) -> None:
    plan = dataclasses.replace(
        PRESETS[name].plan_for_round(round_index, 7),
        direction_groups=8,
        micro_batch=2,
        update_encoding=UpdateEncoding.DENSE,
        backward_equivalents=2.25,
    )
    assert through_the_wire("plan", plan) == plan


def plan_enums() -> list[tuple[str, Any]]:
    members = {Objective, Estimator, FiniteDifference, DirectionDistribution, HeadTraining, ClientOptimiser}
    values = {field.name: type(getattr(PLAN, field.name)) for field in dataclasses.fields(Plan)}
    return [(name, kind) for name, kind in values.items() if kind in members]


@pytest.mark.parametrize(("field", "member"), [(field, member) for field, kind in plan_enums() for member in kind])
def test_every_member_of_every_enum_of_a_plan_travels(field: str, member: Any) -> None:
    plan = dataclasses.replace(PLAN, **{field: member})
    assert through_the_wire("plan", plan) == plan


def test_a_plan_message_has_exactly_the_fields_of_a_plan() -> None:
    assert {f.name for f in pb.Plan.DESCRIPTOR.fields} == {f.name for f in dataclasses.fields(Plan)}
    assert {f.name for f in pb.LocalStatistics.DESCRIPTOR.fields} == {f.name for f in dataclasses.fields(LocalStatistics)}


@pytest.mark.parametrize("step", [ASSIGNMENT, Wait(0.25, "waiting for two more clients"), Finished("60 rounds are done")])
@pytest.mark.parametrize("losses", [(), LOSSES])
def test_the_next_step_and_its_losses_come_back_as_they_were_sent(step: Any, losses: tuple[UploadLoss, ...]) -> None:
    message = sent(wire_messages.next_step_to_proto(step, losses))
    assert wire_messages.next_step_from_proto(message) == step
    assert wire_messages.losses_from_proto(message.losses) == losses


def test_a_next_step_of_an_unknown_kind_is_a_short_wait() -> None:
    step = wire_messages.next_step_from_proto(pb.NextAssignmentResponse())
    assert isinstance(step, Wait)
    assert 0 < step.seconds <= 5


@pytest.mark.parametrize("purpose", list(UploadPurpose))
def test_every_purpose_comes_back_as_it_was_sent(purpose: UploadPurpose) -> None:
    message = sent(pb.UploadHeader(purpose=wire.purpose_to_proto(purpose)))
    assert wire.purpose_from_proto(message.purpose) is purpose


def test_several_specifications_keep_their_order() -> None:
    messages = [sent(wire.tensor_spec_to_proto(spec)) for spec in MODEL.client_model]
    assert wire.tensor_specs_from_proto(messages) == MODEL.client_model


@pytest.mark.parametrize(("domain", "wire_enum", "prefix"), DOMAIN_AND_WIRE, ids=[row[2] for row in DOMAIN_AND_WIRE])
def test_domain_and_wire_enums_name_the_same_things_and_zero_means_unspecified(domain: Any, wire_enum: Any, prefix: str) -> None:
    assert {f"{prefix}_{member.name}" for member in domain} | {f"{prefix}_UNSPECIFIED"} == set(wire_enum.keys())
    assert wire_enum.Value(f"{prefix}_UNSPECIFIED") == 0


def test_all_wire_enums_but_the_encoding_of_updates_have_a_domain_twin() -> None:
    assert set(pb.DESCRIPTOR.enum_types_by_name) - {wire_enum.DESCRIPTOR.name for _, wire_enum, _ in DOMAIN_AND_WIRE} == {"UpdateEncoding"}


UNKNOWN = [0, 99]


@pytest.mark.parametrize(("field", "number"), list(itertools.product([field for field, _ in plan_enums()], UNKNOWN)))
def test_an_unknown_enum_value_in_a_plan_is_named_in_the_refusal(field: str, number: int) -> None:
    message = wire.plan_to_proto(PLAN)
    setattr(message, field, number)
    with pytest.raises(RefusedError, match=f"^{field} {number} is not one that this version knows: update the older side$"):
        wire.plan_from_proto(sent(message))


@pytest.mark.parametrize("number", UNKNOWN)
def test_an_unknown_dtype_program_kind_or_purpose_is_refused(number: int) -> None:
    spec, membership = wire.tensor_spec_to_proto(MODEL.cut), wire_messages.membership_to_proto(MEMBERSHIP)
    spec.dtype = number  # type: ignore[assignment]
    membership.programs[1].kind = number  # type: ignore[assignment]
    for decode, what in (
        (lambda: wire.tensor_spec_from_proto(sent(spec)), "dtype"),
        (lambda: wire_messages.membership_from_proto(sent(membership)), "program kind"),
        (lambda: wire.purpose_from_proto(number), "upload purpose"),
    ):
        with pytest.raises(RefusedError, match=f"{what} {number} is not one that this version knows"):
            decode()


@pytest.mark.parametrize(
    "shape", [(0,), (-1,), (3, 0, 2), (-(2**63),), (1,) * (MAX_RANK + 1)], ids=["zero", "negative", "inner", "lowest", "rank"]
)
def test_a_shape_with_a_dimension_below_one_or_too_many_of_them_is_refused(shape: tuple[int, ...]) -> None:
    message = pb.TensorSpec(name="z", dtype=pb.DTYPE_FLOAT32, shape=shape)
    with pytest.raises(RefusedError, match=f"at most {MAX_RANK} dimensions of at least 1") as refusal:
        wire.tensor_spec_from_proto(sent(message))
    assert refusal.value.code is ErrorCode.INVALID_TENSOR


def test_a_shape_of_a_million_dimensions_makes_a_short_refusal() -> None:
    message = pb.TensorSpec(name="z", dtype=pb.DTYPE_FLOAT32, shape=(7,) * 1_000_000)
    with pytest.raises(RefusedError) as refusal:
        wire.tensor_spec_from_proto(message)
    assert len(refusal.value.sentence) < 300
