"""Is what the server said at joining something that a client can work with? Checked before anything is fetched or allocated.

A server may be broken, of another version, or not the one it seems to be: every size, count and text of its answer has a bound here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from heron_client.network.memory_budget import check_membership_memory
from heron_common.algorithm.plan_checks import plan_mistakes
from heron_common.data.tokeniser import MAX_TOKENIZER_BYTES
from heron_common.errors import ProgramError
from heron_common.numerics.base_layout import base_layout
from heron_common.numerics.tensors import MAX_RANK, DType, TensorSpec
from heron_common.protocol.messages import Membership
from heron_common.specification.data_specification import DataSpecification, Task
from heron_common.specification.model_spec import (
    FRONT_STATISTICS,
    HEAD_STATISTICS,
    MAX_PROGRAM_BYTES,
    BlobReference,
    ModelSpec,
    ProgramKind,
)

HEARTBEAT_SECONDS = (0.01, 1e8)
"""A client beats at most a hundred times a second, whatever it is told; simulated ones, whose time is not the clock's, once in years."""

MAX_NUM_CLASSES = 1 << 24
"""Tokens of a vocabulary, of which the largest published ones have a quarter of a million."""

MAX_MICRO_BATCH = 1 << 20
"""Samples of one run of a program; their memory is bounded apart."""

LATEST_TIME_SECONDS = 2.5e11
"""The year 9892: what comes later has no date in the standard library."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_membership(membership: Membership, memory_budget: int) -> None:
    """Refuse a membership with anything in it that is out of bounds or contradicts the rest; all mistakes at once.

    Raises:
        ProgramError: it has; or what it asks for does not fit into `memory_budget` bytes.

    """
    mistakes = [
        *_run_mistakes(membership),
        *_data_mistakes(membership.data_specification),
        *_model_mistakes(membership.model, membership.data_specification),
        *_blob_mistakes(membership),
    ]
    if mistakes:
        raise ProgramError(
            f"the server's answer to the join cannot be used ({'; '.join(mistakes[:4])}): check --server, or update the older side"
        )
    check_membership_memory(membership, memory_budget)


def _run_mistakes(membership: Membership) -> Iterator[str]:
    for what, text in (("run id", membership.run_id), ("session", membership.session)):
        if _NAME.fullmatch(text) is None:
            yield f"a {what} is 1 to 128 letters, digits, '.', '_' or '-', not {text[:80]!r}"
    least, most = HEARTBEAT_SECONDS
    if not least <= membership.heartbeat_seconds <= most:
        yield f"heartbeats are {least:g} to {most:g} seconds apart, not {membership.heartbeat_seconds}"
    if not 0 <= membership.server_time_seconds < LATEST_TIME_SECONDS:
        yield f"the server's clock says a time since 1970, not {membership.server_time_seconds} seconds"
    if membership.plan is not None:
        yield from plan_mistakes(membership.plan)
    if not 0 <= membership.held_out < 1:
        yield f"the share that is held out is at least 0 and below 1, not {membership.held_out}"


def _data_mistakes(data: DataSpecification) -> Iterator[str]:
    shape = data.input_shape
    if not 1 <= len(shape) <= MAX_RANK or min(shape, default=0) < 1:
        yield f"a sample has 1 to {MAX_RANK} dimensions of at least 1, not {list(shape[:16])}"
        return
    if (data.tokens or data.task is Task.NEXT_TOKEN) and len(shape) != 1:
        yield f"a sequence has one dimension, not {list(shape)}"
    if list(data.lengths) != sorted(set(data.lengths)) or (data.lengths and (data.lengths[0] < 1 or data.lengths[-1:] != shape)):
        yield f"lengths of text ascend to that of a sample, {shape[-1]}, and are not {list(data.lengths[:16])}"
    if not 1 <= data.num_classes <= MAX_NUM_CLASSES:
        yield f"there are 1 to {MAX_NUM_CLASSES} classes, not {data.num_classes}"
    if len(data.class_names) > data.num_classes:
        yield f"{data.num_classes} classes have no more names than that, not {len(data.class_names)}"
    if data.columns and (len(set(data.columns)) != len(data.columns) or len(data.columns) != math.prod(shape)):
        yield f"{math.prod(shape)} numbers have a name each or none, not {len(set(data.columns))} names"
    if not math.isfinite(data.mean) or not all(map(math.isfinite, data.channel_means)):
        yield "means are finite"
    if not all(0 < deviation < math.inf for deviation in (data.standard_deviation, *data.channel_deviations)):
        yield "standard deviations are positive and finite"
    channels = {len(data.channel_means), len(data.channel_deviations)}
    if channels not in ({0}, {shape[0]}):
        yield f"means and deviations are for each of {shape[0]} channels or for none, not for {sorted(channels)}"


def _model_mistakes(model: ModelSpec, data: DataSpecification) -> Iterator[str]:
    for what, specs in (("client_model", model.client_model), ("auxiliary_head", model.auxiliary_head), ("statistics", model.statistics)):
        wrong = next((spec for spec in specs if spec.dtype is not DType.FLOAT32), None)
        if wrong is not None:
            yield f"tensors of {what} are float32, but {wrong.name[:80]!r} is {wrong.dtype.value}"
    if not all(spec.name.startswith((FRONT_STATISTICS, HEAD_STATISTICS)) for spec in model.statistics):
        yield "running statistics are named for front or head"
    if model.lengths != data.lengths:
        yield f"lengths of text are {list(data.lengths[:16])} by the data specification, but {list(model.lengths[:16])} by the model"
    if not 0 <= model.without_gradient <= len(model.client_model):
        yield f"of {len(model.client_model)} tensors of the front at most all are without gradients, not {model.without_gradient}"
    if model.cut.dtype is not DType.FLOAT32:
        yield f"activations are float32, not {model.cut.dtype.value}"
    if (model.labels.dtype, model.labels.shape) != (data.labels.dtype, data.labels.shape):
        yield f"labels are {_form(data.labels)} by the data specification, but {_form(model.labels)} by the model"
    if len(model.context) > 1 or any((spec.dtype, spec.shape) != (DType.UINT8, data.input_shape) for spec in model.context):
        yield "beside activations goes a mask of the sample's shape or nothing"


def _blob_mistakes(membership: Membership) -> Iterator[str]:
    kinds = [(program.kind, program.length) for program in membership.programs]
    if not kinds or len(set(kinds)) != len(kinds):
        yield f"there is one program of a kind for each length, not {[kind.value for kind, _ in kinds[:8]]}"
    for program in membership.programs:
        yield from _blob_mistake(program.blob, f"the {program.kind.value} program", MAX_PROGRAM_BYTES)
        if not 1 <= program.micro_batch <= MAX_MICRO_BATCH:
            yield f"a micro-batch has 1 to {MAX_MICRO_BATCH} samples, not {program.micro_batch}"
        elif program.directions < 1 or program.micro_batch % program.directions:
            yield f"a micro-batch of {program.micro_batch} samples is not {program.directions} equal groups"
        elif program.directions > 1 and program.kind in (ProgramKind.GRADIENT, ProgramKind.PULLBACK):
            yield f"a {program.kind.value} program takes one direction, not {program.directions}"
    if len({program.directions for program in membership.programs} - {1}) > 1:
        yield "programs take groups with weights of their own, of different numbers"
    tokenizer = membership.data_specification.tokenizer
    if tokenizer is not None:
        yield from _blob_mistake(tokenizer, "the tokenizer", MAX_TOKENIZER_BYTES)
    frozen = base_layout(membership.model.base).total_bytes
    if membership.base is not None:
        yield from _blob_mistake(membership.base, "the frozen weights", frozen)
    if frozen != (membership.base.size_bytes if membership.base is not None else 0):
        yield f"frozen tensors take {frozen} bytes, but the blob has {membership.base.size_bytes if membership.base else 'none'}"


def _blob_mistake(blob: BlobReference, what: str, most: int) -> Iterator[str]:
    if _DIGEST.fullmatch(blob.sha256) is None:
        yield f"the digest of {what} is 64 hexadecimal digits, not {blob.sha256[:80]!r}"
    if not 0 < blob.size_bytes <= most:
        yield f"{what} takes 1 to {most} bytes, not {blob.size_bytes}"


def _form(spec: TensorSpec) -> str:
    return f"{spec.dtype.value}{list(spec.shape)}"
