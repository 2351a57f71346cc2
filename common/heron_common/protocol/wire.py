"""What messages are made of, to protobuf and back, in pairs `x_to_proto` and `x_from_proto`; beside `wire_messages.py` the only domain module that knows protobuf."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from heron_common.algorithm.plan import ClientOptimiser, Estimator, HeadTraining, Objective, Plan, UpdateEncoding
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.numerics.directions import DirectionDistribution
from heron_common.numerics.tensors import MAX_RANK, DType, TensorSpec
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.protocol.messages import UploadPurpose
from heron_common.specification.data_specification import MAX_COLUMNS, MAX_LENGTHS, DataSpecification, Task
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramKind, ProgramReference
from heron_proto.v1 import split_training_pb2 as pb

Member = TypeVar("Member")


def _table(members: Any, wire_enum: Any, prefix: str) -> dict[Any, int]:
    """Return {domain member: wire number}; fails at import if the two enums do not name the same things."""
    table = {member: wire_enum.Value(f"{prefix}_{member.name}") for member in members}
    if len(table) != len(wire_enum.keys()) - 1:
        raise RuntimeError(f"the wire enum with prefix {prefix} and its domain enum name different things")
    return table


_DTYPE = _table(DType, pb.DType, "DTYPE")
_PROGRAM_KIND = _table(ProgramKind, pb.ProgramKind, "PROGRAM_KIND")
_TASK = _table(Task, pb.Task, "TASK")
_PURPOSE = _table(UploadPurpose, pb.UploadPurpose, "UPLOAD_PURPOSE")
_ENCODING = _table((UpdateEncoding.DENSE, UpdateEncoding.LOG), pb.UpdateEncoding, "UPDATE_ENCODING")
_PLAN_ENUMS: dict[str, dict[Any, int]] = {
    "objective": _table(Objective, pb.Objective, "OBJECTIVE"),
    "estimator": _table(Estimator, pb.Estimator, "ESTIMATOR"),
    "difference": _table(FiniteDifference, pb.FiniteDifference, "FINITE_DIFFERENCE"),
    "distribution": _table(DirectionDistribution, pb.DirectionDistribution, "DIRECTION_DISTRIBUTION"),
    "head_training": _table(HeadTraining, pb.HeadTraining, "HEAD_TRAINING"),
    "optimiser": _table(ClientOptimiser, pb.ClientOptimiser, "CLIENT_OPTIMISER"),
    "wire_dtype": {member: _DTYPE[DType(member.value)] for member in WireDtype},
    "update_encoding": _ENCODING,
}


MAX_TENSORS = 8192
"""Of one kind in a message; a transformer of a hundred blocks has some two thousand."""

MAX_NAME_CHARACTERS = 512
"""Of a tensor: a path through modules."""

MAX_CLASS_NAMES = 1 << 16
"""In a data specification."""

MAX_CHANNELS = 1 << 12
"""With a mean and a deviation of their own."""


def few(values: Any, most: int, what: str) -> Any:
    """Return `values` if they are not too many: a message of a mebibyte may hold half a million of them, and each becomes an object."""
    if len(values) > most:
        raise RefusedError(ErrorCode.OVERSIZED, f"a message has at most {most} {what}, but {len(values)} came: update the older side")
    return values


def _member(table: dict[Member, int], number: int, what: str) -> Member:
    for member, value in table.items():
        if value == number:
            return member
    raise RefusedError(ErrorCode.INVALID_TENSOR, f"{what} {number} is not one that this version knows: update the older side")


def tensor_spec_to_proto(spec: TensorSpec) -> pb.TensorSpec:
    """Encode a tensor specification."""
    return pb.TensorSpec(name=spec.name, dtype=_DTYPE[spec.dtype], shape=spec.shape)  # type: ignore[arg-type]


def tensor_spec_from_proto(message: pb.TensorSpec) -> TensorSpec:
    """Decode a tensor specification; refuses unknown dtypes, more than MAX_RANK dimensions and dimensions below 1."""
    if len(message.shape) > MAX_RANK or any(dimension < 1 for dimension in message.shape):
        raise RefusedError(
            ErrorCode.INVALID_TENSOR, f"a shape has at most {MAX_RANK} dimensions of at least 1, but {list(message.shape)[:16]} came"
        )
    if len(message.name) > MAX_NAME_CHARACTERS:
        raise RefusedError(
            ErrorCode.INVALID_TENSOR, f"a tensor's name has at most {MAX_NAME_CHARACTERS} characters, but {message.name[:80]!r}... came"
        )
    return TensorSpec(message.name, _member(_DTYPE, message.dtype, "dtype"), tuple(message.shape))


def tensor_specs_from_proto(messages: Any) -> tuple[TensorSpec, ...]:
    """Decode several tensor specifications; refuses more than MAX_TENSORS."""
    return tuple(tensor_spec_from_proto(message) for message in few(messages, MAX_TENSORS, "tensors"))


def blob_to_proto(blob: BlobReference) -> pb.Blob:
    """Encode a blob reference."""
    return pb.Blob(sha256=blob.sha256, size_bytes=blob.size_bytes)


def blob_from_proto(message: pb.Blob) -> BlobReference:
    """Decode a blob reference."""
    return BlobReference(message.sha256, message.size_bytes)


def program_to_proto(program: ProgramReference) -> pb.Program:
    """Encode a reference to a program."""
    kind: Any = _PROGRAM_KIND[program.kind]
    return pb.Program(
        kind=kind, blob=blob_to_proto(program.blob), micro_batch=program.micro_batch, length=program.length, directions=program.directions
    )


def program_from_proto(message: pb.Program) -> ProgramReference:
    """Decode a reference to a program; refuses a kind that this version does not know."""
    kind = _member(_PROGRAM_KIND, message.kind, "program kind")
    return ProgramReference(
        kind, blob_from_proto(message.blob), micro_batch=message.micro_batch, length=message.length, directions=message.directions
    )


def round_to_proto(reference: RoundReference) -> pb.RoundReference:
    """Encode a round reference."""
    return pb.RoundReference(round_index=reference.round_index, attempt=reference.attempt)


def round_from_proto(message: pb.RoundReference) -> RoundReference:
    """Decode a round reference."""
    return RoundReference(message.round_index, message.attempt)


def plan_to_proto(plan: Plan) -> pb.Plan:
    """Encode a plan."""
    values = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    encoded: dict[str, Any] = {name: _PLAN_ENUMS[name][value] if name in _PLAN_ENUMS else value for name, value in values.items()}
    return pb.Plan(**encoded)


def plan_from_proto(message: pb.Plan) -> Plan:
    """Decode a plan; refuses members of an enum that this version does not know."""
    values = {f.name: getattr(message, f.name) for f in dataclasses.fields(Plan)}
    decoded: dict[str, Any] = {
        name: _member(_PLAN_ENUMS[name], value, name) if name in _PLAN_ENUMS else value for name, value in values.items()
    }
    return Plan(**decoded)


def data_specification_to_proto(data: DataSpecification) -> pb.DataSpecification:
    """Encode what the model expects of data."""
    values = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    encoded: dict[str, Any] = values | {"task": _TASK[data.task], "tokenizer": blob_to_proto(data.tokenizer) if data.tokenizer else None}
    return pb.DataSpecification(**encoded)


def data_specification_from_proto(message: pb.DataSpecification) -> DataSpecification:
    """Decode what the model expects of data; refuses a task that this version does not know."""
    return DataSpecification(
        name=message.name,
        input_shape=tuple(few(message.input_shape, MAX_RANK, "dimensions of a sample")),
        num_classes=message.num_classes,
        mean=message.mean,
        standard_deviation=message.standard_deviation,
        task=_member(_TASK, message.task, "task"),
        tokens=message.tokens,
        class_names=tuple(few(message.class_names, MAX_CLASS_NAMES, "class names")),
        channel_means=tuple(few(message.channel_means, MAX_CHANNELS, "channels")),
        channel_deviations=tuple(few(message.channel_deviations, MAX_CHANNELS, "channels")),
        tokenizer=blob_from_proto(message.tokenizer) if message.HasField("tokenizer") else None,
        refuses_overlong=message.refuses_overlong,
        lengths=tuple(few(message.lengths, MAX_LENGTHS, "lengths of text")),
        columns=columns_from_proto(message.columns),
        columns_of_client=message.columns_of_client,
    )


def columns_from_proto(names: Sequence[str]) -> tuple[str, ...]:
    """Decode names of columns; refuses more than a sample can have."""
    return tuple(few(names, MAX_COLUMNS, "columns"))


def model_to_proto(model: ModelSpec) -> pb.Model:
    """Encode the tensors of the client's part."""
    return pb.Model(
        client_model=[tensor_spec_to_proto(spec) for spec in model.client_model],
        auxiliary_head=[tensor_spec_to_proto(spec) for spec in model.auxiliary_head],
        cut=tensor_spec_to_proto(model.cut),
        labels=tensor_spec_to_proto(model.labels),
        context=[tensor_spec_to_proto(spec) for spec in model.context],
        base=[tensor_spec_to_proto(spec) for spec in model.base],
        statistics=[tensor_spec_to_proto(spec) for spec in model.statistics],
        lengths=model.lengths,
        without_gradient=model.without_gradient,
    )


def model_from_proto(message: pb.Model) -> ModelSpec:
    """Decode the tensors of the client's part."""
    return ModelSpec(
        client_model=tensor_specs_from_proto(message.client_model),
        auxiliary_head=tensor_specs_from_proto(message.auxiliary_head),
        cut=tensor_spec_from_proto(message.cut),
        labels=tensor_spec_from_proto(message.labels),
        context=tensor_specs_from_proto(message.context),
        base=tensor_specs_from_proto(message.base),
        statistics=tensor_specs_from_proto(message.statistics),
        lengths=tuple(few(message.lengths, MAX_LENGTHS, "lengths of text")),
        without_gradient=message.without_gradient,
    )


def encoding_to_proto(encoding: UpdateEncoding) -> Any:
    """Encode an update's encoding."""
    return _ENCODING[encoding]


def encoding_from_proto(number: int) -> UpdateEncoding:
    """Decode an update's encoding; refuses unknown ones."""
    encoding: UpdateEncoding = _member(_ENCODING, number, "update encoding")
    return encoding


def purpose_to_proto(purpose: UploadPurpose) -> Any:
    """Encode an upload's purpose."""
    return _PURPOSE[purpose]


def purpose_from_proto(number: int) -> UploadPurpose:
    """Decode an upload's purpose; refuses unknown ones."""
    purpose: UploadPurpose = _member(_PURPOSE, number, "upload purpose")
    return purpose
