"""What a server may ask of a client: every size, count and text in its answers has a bound, and its buffers fit the device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heron_client.network.answer_reader import AnswerReader
from heron_client.network.assignment_checks import check_assignment
from heron_client.network.membership_checks import check_membership
from heron_common.algorithm.presets import PRESETS
from heron_common.errors import ProgramError, TransportError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.process.process_memory import usable_memory
from heron_common.protocol.chunks import StreamAccount
from heron_common.protocol.messages import Assignment, Membership, UploadAnswer
from heron_common.specification.data_specification import DataSpecification, Task
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramKind, ProgramReference

BUDGET = 64 << 20
DIGEST = "ab" * 32
FRONT = (TensorSpec("0.weight", DType.FLOAT32, (4, 1, 3, 3)), TensorSpec("0.bias", DType.FLOAT32, (4,)))
HEAD = (TensorSpec("1.weight", DType.FLOAT32, (10, 16)),)
MODEL = ModelSpec(FRONT, HEAD, cut=TensorSpec("cut", DType.FLOAT32, (16,)))
DATA = DataSpecification("digits", (1, 8, 8), num_classes=10, mean=4.8, standard_deviation=16.0)
LOSS = ProgramReference(ProgramKind.LOSS, BlobReference(DIGEST, 2000), micro_batch=4)
FRONT_PROGRAM = dataclasses.replace(LOSS, kind=ProgramKind.FRONT)
MEMBERSHIP = Membership(
    "run-1",
    "session-1",
    run_seed=7,
    data_specification=DATA,
    model=MODEL,
    programs=(LOSS, FRONT_PROGRAM),
    heartbeat_seconds=10.0,
    num_rounds=60,
)
PLAN = dataclasses.replace(PRESETS["heron"].plan, batch_size=32, direction_groups=8, micro_batch=4)
ASSIGNMENT = Assignment(
    RoundReference(0, 0),
    PLAN,
    client_model=BlobReference(DIGEST, 4 * 40),
    auxiliary_head=BlobReference(DIGEST, 4 * 160),
    direction_scales=(0.1, 0.1),
    second_moment=0.0,
)


def but(value: Any, **changes: Any) -> Any:
    """Return the value with fields replaced; `data__x` is field x of field data."""
    direct = {name: change for name, change in changes.items() if "__" not in name}
    for name, change in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            direct[outer] = but(direct.get(outer, getattr(value, outer)), **{inner: change})
    return dataclasses.replace(value, **direct)


def test_what_real_servers_say_passes() -> None:
    check_membership(MEMBERSHIP, BUDGET)
    check_assignment(ASSIGNMENT, MEMBERSHIP, BUDGET)
    text = but(DATA, input_shape=(32,), task=Task.NEXT_TOKEN, tokens=True, num_classes=50_000, tokenizer=BlobReference(DIGEST, 1 << 20))
    model = but(MODEL, labels=text.labels, context=(TensorSpec("mask", DType.UINT8, (32,)),), base=(TensorSpec("e", DType.INT8, (9, 3)),))
    check_membership(but(MEMBERSHIP, data_specification=text, model=model, base=BlobReference(DIGEST, 64 + 36)), BUDGET)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run_id": ""}, "run id"),
        ({"session": "x" * 129}, "session"),
        ({"session": "a\nb"}, "session"),
        ({"heartbeat_seconds": 0.0}, "heartbeats"),
        ({"heartbeat_seconds": math.nan}, "heartbeats"),
        ({"heartbeat_seconds": 1e300}, "heartbeats"),
        ({"held_out": 1.0}, "held out"),
        ({"held_out": math.nan}, "held out"),
        ({"held_out": -0.5}, "held out"),
        ({"data_specification__input_shape": ()}, "dimensions"),
        ({"data_specification__input_shape": (1, 0, 8)}, "dimensions"),
        ({"data_specification__input_shape": (1,) * 9}, "dimensions"),
        ({"data_specification__tokens": True}, "one dimension"),
        ({"data_specification__num_classes": 0}, "classes"),
        ({"data_specification__num_classes": 1 << 31}, "classes"),
        ({"data_specification__class_names": ("a",) * 11}, "names"),
        ({"data_specification__columns": ("a", "b")}, "a name each"),
        ({"data_specification__columns": ("a",) * 64}, "a name each"),
        ({"data_specification__mean": math.inf}, "means"),
        ({"data_specification__standard_deviation": 0.0}, "deviations"),
        ({"data_specification__standard_deviation": math.nan}, "deviations"),
        ({"data_specification__channel_means": (0.5, 0.5)}, "channels"),
        ({"data_specification__tokenizer": BlobReference("../../x", 10)}, "tokenizer"),
        ({"data_specification__tokenizer": BlobReference(DIGEST, 65 << 20)}, "tokenizer"),
        ({"model__client_model": (TensorSpec("w", DType.INT8, (4,)),)}, "float32"),
        ({"model__cut": TensorSpec("cut", DType.INT8, (16,))}, "activations"),
        ({"model__labels": TensorSpec("labels", DType.INT64, (3,))}, "labels"),
        ({"model__context": (TensorSpec("mask", DType.UINT8, (3,)),)}, "mask"),
        ({"model__without_gradient": 3}, "without gradients"),
        ({"model__statistics": (TensorSpec("elsewhere.mean", DType.FLOAT32, (4,)),)}, "statistics"),
        ({"model__base": (TensorSpec("b", DType.INT8, ()),)}, "rows"),
        ({"model__base": (TensorSpec("b", DType.FLOAT32, (4,)),)}, "frozen"),
        ({"base": BlobReference(DIGEST, 1 << 40)}, "frozen"),
        ({"programs": ()}, "program"),
        ({"programs": (LOSS, LOSS)}, "program"),
        ({"programs": (but(LOSS, micro_batch=0),)}, "micro-batch"),
        ({"programs": (but(LOSS, micro_batch=1 << 32),)}, "micro-batch"),
        ({"programs": (but(LOSS, blob=BlobReference(DIGEST, 5 << 20)),)}, "loss program"),
        ({"programs": (but(LOSS, blob=BlobReference("ab", 10)),)}, "digest"),
        ({"programs": (but(LOSS, directions=0),)}, "equal groups"),
        ({"programs": (but(LOSS, directions=3),)}, "equal groups"),
        ({"programs": (but(LOSS, directions=8),)}, "equal groups"),
        ({"programs": (but(LOSS, kind=ProgramKind.GRADIENT, directions=2),)}, "one direction"),
        ({"programs": (but(LOSS, directions=2), but(FRONT_PROGRAM, directions=4))}, "of their own"),
    ],
)
def test_a_membership_out_of_bounds_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ProgramError, match=why):
        check_membership(but(MEMBERSHIP, **changes), BUDGET)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__client_model": (TensorSpec("w", DType.FLOAT32, (1 << 62,) * 8),)},
        {"model__client_model": (TensorSpec("w", DType.FLOAT32, (9 << 20,)),)},
        {"model__statistics": (TensorSpec("front.m", DType.FLOAT32, (1 << 30,)),)},
        {"model__cut": TensorSpec("cut", DType.FLOAT32, (1 << 22,))},
        {"data_specification__input_shape": (1 << 22,)},
        {"programs": (but(LOSS, micro_batch=1 << 20),)},
    ],
)
def test_buffers_beyond_the_budget_are_refused_by_their_counts(changes: dict[str, Any]) -> None:
    with pytest.raises(ProgramError, match="at most 67108864 may go to a run"):
        check_membership(but(MEMBERSHIP, **changes), BUDGET)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"plan__local_steps": (1 << 32) - 1}, "local_steps"),
        ({"plan__batch_size": 0}, "batch_size"),
        ({"plan__micro_batch": 3}, "micro_batch"),
        ({"plan__micro_batch": 2}, "micro-batches"),
        ({"plan__learning_rate": math.nan}, "learning_rate"),
        ({"plan__smoothing_radius": math.inf}, "smoothing_radius"),
        ({"direction_scales": (0.1,)}, "direction scale"),
        ({"direction_scales": (0.1, math.nan)}, "direction scales"),
        ({"direction_scales": (0.1, -1.0)}, "direction scales"),
        ({"second_moment": -1.0}, "second moment"),
        ({"derivative_quantile": math.nan}, "quantile"),
        ({"client_model": BlobReference(DIGEST, 1 << 40)}, "front's weights"),
        ({"client_model": BlobReference("/etc", 160)}, "digest"),
        ({"auxiliary_head": None}, "head"),
        ({"statistics": BlobReference(DIGEST, 8)}, "statistics"),
    ],
)
def test_an_assignment_that_cannot_be_carried_out_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ProgramError, match=why):
        check_assignment(but(ASSIGNMENT, **changes), MEMBERSHIP, BUDGET)


def test_a_plan_whose_program_was_not_named_is_refused() -> None:
    with pytest.raises(ProgramError, match="loss program"):
        check_assignment(ASSIGNMENT, but(MEMBERSHIP, programs=(FRONT_PROGRAM,)), BUDGET)


@pytest.mark.parametrize(
    "changes", [{"batch_size": 1_000_000, "direction_groups": 250_000}, {"local_steps": 1_000_000, "upload_interval": 1}]
)
def test_a_round_beyond_the_budget_is_refused_by_its_counts(changes: dict[str, int]) -> None:
    with pytest.raises(ProgramError, match="the round asks for"):
        check_assignment(but(ASSIGNMENT, plan=but(PLAN, **changes)), MEMBERSHIP, BUDGET)


def answer(*losses: float) -> UploadAnswer:
    return UploadAnswer(0, probe_losses=losses, losses=())


LAMBDA = TensorSpec("cut_gradient", DType.FLOAT32, (2, 2))


def test_an_answer_is_read_whole() -> None:
    reader, account = AnswerReader((LAMBDA,), 0), StreamAccount()
    reader.answer(answer())
    for piece in (b"x" * 8, b"y" * 8):
        account.add(piece)
        assert reader.chunk(0, piece) == "cut_gradient"
    reader.trailer(account.length_bytes, account.sha256)
    assert bytes(reader.whole().cut_gradient) == b"x" * 8 + b"y" * 8


@pytest.mark.parametrize(
    "parts",
    [
        lambda r: (r.answer(answer()), r.answer(answer())),
        lambda r: r.answer(answer(1.0)),
        lambda r: r.chunk(1, b"x" * 8),
        lambda r: r.chunk(1 << 31, b"x" * 8),
        lambda r: r.chunk(0, b""),
        lambda r: r.chunk(0, b"x" * 17),
        lambda r: r.chunk(0, bytes((1 << 20) + 1)),
        lambda r: r.trailer(16, bytes(32)),
        lambda r: (r.chunk(0, b"x" * 16), r.trailer(16, bytes(32))),
        lambda r: (r.answer(answer()), r.whole()),
        lambda r: r.whole(),
    ],
)
def test_an_answer_that_is_more_less_or_other_than_asked_for_is_refused(parts: Callable[[AnswerReader], Any]) -> None:
    with pytest.raises(TransportError):
        parts(AnswerReader((LAMBDA,), 0))


def test_the_memory_that_may_be_used_is_the_least_that_machine_and_groups_leave(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    assert usable_memory(proc, groups) == 0
    (proc / "meminfo").write_text("MemTotal:        2000 kB\nMemFree: 1 kB\n")
    assert usable_memory(proc, groups) == 2000 * 1024
    (proc / "self" / "cgroup").write_text("0::/box/inner\n4:cpu,memory:/old\n")
    for folder, name, text in (
        (groups / "box" / "inner", "memory.max", "max"),
        (groups / "box", "memory.max", "1048576"),
        (groups / "memory" / "old", "memory.limit_in_bytes", "9223372036854771712"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    assert usable_memory(proc, groups) == 1 << 20
    (groups / "memory" / "old" / "memory.limit_in_bytes").write_text("4096\n")
    assert usable_memory(proc, groups) == 4096
    assert usable_memory() > 0


HYBRID = dataclasses.replace(PRESETS["hybrid"].plan, batch_size=32, direction_groups=8, micro_batch=4)


def test_a_plan_of_two_estimators_fits_a_model_whose_first_tensors_are_without_gradients() -> None:
    gradient = dataclasses.replace(LOSS, kind=ProgramKind.GRADIENT)
    apart = but(MEMBERSHIP, model__without_gradient=1, programs=(LOSS, gradient))
    hybrid = but(ASSIGNMENT, plan=HYBRID, direction_scales=(0.1,))
    check_assignment(hybrid, apart, BUDGET)
    for assignment, membership, why in (
        (but(hybrid, direction_scales=(0.1, 0.1)), apart, "direction scale"),
        (hybrid, but(apart, programs=(LOSS,)), "gradient program"),
        (hybrid, but(apart, programs=(gradient,)), "loss program"),
        (but(hybrid, direction_scales=()), but(apart, model__without_gradient=0), "estimator=hybrid"),
        (ASSIGNMENT, apart, "estimator=zeroth_order"),
    ):
        with pytest.raises(ProgramError, match=why):
            check_assignment(assignment, membership, BUDGET)
