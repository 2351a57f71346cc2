"""Costs by the plan alone: equal to what a real round's meter and network count, to numbers worked out by hand, and the log's threshold from both sides."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from heron_common.algorithm.plan import Estimator, HeadTraining, Objective, Plan, UpdateEncoding
from heron_common.algorithm.plan_checks import algorithm_mistakes
from heron_common.algorithm.plan_counts import REPLAY_ADDITIONS_PER_BYTE, forward_equivalents, prefers_log, round_bytes
from heron_common.algorithm.presets import PRESETS, preset
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.protocol.messages import PeakMemory
from heron_common.specification.model_spec import ModelSpec
from tests.client.models import TinyModel, tiny_model_of
from tests.client.rounds import Finished, Network, run_round, small_plan

CENTRAL = {"difference": FiniteDifference.CENTRAL}
FORWARD = {"difference": FiniteDifference.FORWARD}
PARTLY = {"backward_equivalents": 0.125}
REST = {"objective": Objective.NONE, "estimator": Estimator.NONE}

SHAPES: list[tuple[str, dict[str, Any], float]] = [
    # Equivalents of one sample over three steps, written out: base + perturbed + backward.
    ("heron", {}, 3 * (1 + 1)),
    ("heron", {"num_directions": 2}, 3 * (1 + 2)),
    ("heron", CENTRAL, 3 * (1 + 2)),
    ("heron", CENTRAL | {"num_directions": 2}, 3 * (1 + 4)),
    ("heron", CENTRAL | {"upload_interval": 2}, 3 * 2 + 2),
    ("heron", {"upload_interval": 3}, 3 * 2),
    ("heron", REST, 3),
    ("heron-paper", {}, 3 * 2),
    ("heron-server-loss", {}, 3 * 2),
    ("heron-server-loss", {"num_directions": 2}, 3 * 3),
    ("heron-server-loss", CENTRAL, 3 * 3),
    ("heron-server-loss", CENTRAL | {"num_directions": 2, "upload_interval": 3}, 3 * 5),
    ("ho-sfl", {}, 3 * (1 + 2)),
    ("ho-sfl", FORWARD, 3 * (1 + 1 + 1)),
    ("ho-sfl", FORWARD | {"num_directions": 2}, 3 * (1 + 1 + 2)),
    ("cse-fsl", {}, 3 * (1 + 2)),
    ("cse-fsl", {"upload_interval": 2}, 3 * 3),
    ("blockwise", {}, 3 * (1 + 2)),
    ("pairs", {}, 3 * (1 + 2)),
    ("last-exact", {}, 3 * (1 + 2)),
    ("last-exact", PARTLY, 3 * (1 + 0.125)),
    ("hybrid", {}, 3 * (1 + 2 + 1)),
    ("hybrid", PARTLY, 3 * (1 + 0.125 + 1)),
    ("hybrid", PARTLY | CENTRAL | {"num_directions": 2, "upload_interval": 2}, 3 * (1 + 0.125 + 4)),
    ("fsl-sage", {}, 3 * 3),
    ("sflv1", {}, 3 * (1 + 3)),
    ("sflv2", {}, 3 * (1 + 3)),
    ("frozen", {}, 3),
    ("frozen", {"upload_interval": 2}, 2),
]
IDS = ["-".join([name, *(f"{k}={v}" for k, v in changes.items())]) for name, changes, _ in SHAPES]


def of_plan(tiny: TinyModel, plan: Plan) -> TinyModel:
    return tiny_model_of(plan) if plan.estimator is Estimator.HYBRID else tiny


def run(tiny: TinyModel, plan: Plan) -> tuple[Finished, Network]:
    random = np.random.default_rng(0)
    judge = (lambda request, _: 1 + 0.01 * random.standard_normal((1 + request.num_probes) * plan.batch_size)) if plan.num_probes else None
    gradient = (
        (lambda request, _: random.standard_normal(request.answer_tensors[0].shape).astype(np.float32)) if plan.needs_cut_gradient else None
    )
    network = Network(judge, gradient)
    return run_round(tiny, plan, network, tiny.random_weights(5)), network


def dense(plan: Plan) -> Plan:
    return dataclasses.replace(plan, update_encoding=UpdateEncoding.DENSE) if plan.update_encoding is UpdateEncoding.AUTO else plan


def test_every_preset_is_among_the_shapes() -> None:
    assert {name for name, _, _ in SHAPES} == set(PRESETS)


@pytest.mark.invariant(17)
@pytest.mark.parametrize(("name", "changes", "equivalents"), SHAPES, ids=IDS)
def test_a_round_costs_what_its_plan_says(tiny: TinyModel, name: str, changes: dict[str, Any], equivalents: float) -> None:
    plan = dense(small_plan(name, **changes))
    tiny = of_plan(tiny, plan)
    done, network = run(tiny, plan)
    assert forward_equivalents(plan) == equivalents * plan.batch_size
    statistics = done.meter.to_statistics(0.0, PeakMemory())
    assert not statistics.diverged
    assert statistics.forward_equivalents == forward_equivalents(plan)
    counted = round_bytes(plan, tiny.model.to_spec())
    sent = {spec.name: 0 for spec in (network.uploads[0][0].tensors)}
    for request, payload in network.uploads:
        for spec, data in zip(request.tensors, payload, strict=True):
            sent[spec.name] += len(data)
    submission = done.round.submission()
    update = {"update": sum(array.nbytes for array in submission.arrays)} if submission.tensors else {}
    assert counted["up"] == sent | update
    assert counted["down"].get("cut_gradient", 0) == network.bytes_down
    assert (network.bytes_down > 0) == (name in ("ho-sfl", "sflv1", "sflv2"))


@pytest.mark.parametrize("dtype", list(WireDtype))
@pytest.mark.parametrize("name", ["heron", "sflv2"])
def test_bytes_follow_the_wire_dtype_both_ways(tiny: TinyModel, name: str, dtype: WireDtype) -> None:
    plan = dense(small_plan(name, wire_dtype=dtype))
    _, network = run(tiny, plan)
    counted = round_bytes(plan, tiny.model.to_spec())
    assert counted["up"]["activations"] == sum(len(payload[0]) for _, payload in network.uploads)
    assert counted["down"].get("cut_gradient", 0) == network.bytes_down


def test_a_log_is_counted_as_it_is_submitted(tiny: TinyModel) -> None:
    plan = small_plan("heron", update_encoding=UpdateEncoding.LOG, num_directions=2)
    done, _ = run(tiny, plan)
    (log,) = done.round.submission().arrays
    assert round_bytes(plan, tiny.model.to_spec())["up"]["update"] == log.nbytes == 3 * 3 * 2 * 8


MODEL = ModelSpec(
    (TensorSpec("w", DType.FLOAT32, (10, 9)), TensorSpec("b", DType.FLOAT32, (10,))),
    (TensorSpec("h", DType.FLOAT32, (7,)),),
    cut=TensorSpec("cut", DType.FLOAT32, (5, 6)),
)
"""100 weights in front, 7 in the head, 30 floats a sample at the cut."""


def hand(name: str, **changes: Any) -> Plan:
    """Return a plan of ten steps of eight samples, an upload at steps 0, 4 and 8 where the plan does not need them all."""
    return dense(dataclasses.replace(preset(name).plan, batch_size=8, direction_groups=2, micro_batch=2, local_steps=10, **changes))


HAND: list[tuple[Plan, dict[str, dict[str, int]]]] = [
    # An upload: 8 rows of 30 floats, 960 bytes, and 8 labels, 64 bytes. The front has 400 bytes, the head 28.
    (hand("heron"), {"up": {"activations": 9600, "labels": 640, "update": 400}, "down": {"weights": 428}}),
    (hand("heron", upload_interval=4), {"up": {"activations": 2880, "labels": 192, "update": 400}, "down": {"weights": 428}}),
    (hand("heron", wire_dtype=WireDtype.FLOAT16), {"up": {"activations": 4800, "labels": 640, "update": 400}, "down": {"weights": 428}}),
    # An int8 row is preceded by its scale: 8 (30 + 4) = 272 bytes.
    (hand("heron", wire_dtype=WireDtype.INT8), {"up": {"activations": 2720, "labels": 640, "update": 400}, "down": {"weights": 428}}),
    # A log: 10 steps, 2 groups of 3 directions, 8 bytes each.
    (
        hand("heron", update_encoding=UpdateEncoding.LOG, num_directions=3),
        {"up": {"activations": 9600, "labels": 640, "update": 480}, "down": {"weights": 428}},
    ),
    (hand("heron-paper"), {"up": {"activations": 9600, "labels": 640, "update": 428}, "down": {"weights": 428}}),
    # Probes go up at every step, whatever the interval; the answers are scalars.
    (hand("heron-server-loss", upload_interval=4), {"up": {"activations": 19200, "labels": 640, "update": 400}, "down": {"weights": 400}}),
    (
        hand("heron-server-loss", difference=FiniteDifference.CENTRAL, num_directions=2),
        {"up": {"activations": 48000, "labels": 640, "update": 400}, "down": {"weights": 400}},
    ),
    (hand("ho-sfl"), {"up": {"activations": 9600, "labels": 640, "update": 400}, "down": {"weights": 400, "cut_gradient": 9600}}),
    (
        hand("sflv2", wire_dtype=WireDtype.INT8),
        {"up": {"activations": 2720, "labels": 640, "update": 400}, "down": {"weights": 400, "cut_gradient": 2720}},
    ),
    (hand("cse-fsl"), {"up": {"activations": 9600, "labels": 640, "update": 428}, "down": {"weights": 428}}),
    # The head is the client's own, but the server trains it.
    (hand("fsl-sage"), {"up": {"activations": 9600, "labels": 640, "update": 400}, "down": {"weights": 428}}),
    (hand("frozen"), {"up": {"activations": 9600, "labels": 640}, "down": {"weights": 400}}),
]


@pytest.mark.invariant(17)
@pytest.mark.parametrize(("plan", "expected"), HAND, ids=[f"{plan.preset}-{index}" for index, (plan, _) in enumerate(HAND)])
def test_the_bytes_of_a_round_are_those_worked_out_by_hand(plan: Plan, expected: dict[str, dict[str, int]]) -> None:
    assert algorithm_mistakes(dataclasses.replace(preset(plan.preset), plan=plan)) == []
    assert round_bytes(plan, MODEL) == expected


def model_of(front: int, head: int = 0) -> ModelSpec:
    heads = (TensorSpec("h", DType.FLOAT32, (head,)),) if head else ()
    return ModelSpec((TensorSpec("w", DType.FLOAT32, (front,)),), heads, cut=TensorSpec("cut", DType.FLOAT32, (1,)))


def logged(steps: int, groups: int, directions: int = 1, **changes: Any) -> Plan:
    return dataclasses.replace(preset("heron").plan, local_steps=steps, direction_groups=groups, num_directions=directions, **changes)


@pytest.mark.parametrize(("weights", "wins"), [(40, False), (41, True)])
def test_a_log_must_be_smaller_than_the_weights(weights: int, wins: bool) -> None:
    # 10 steps of 2 directions: 160 bytes, those of 40 weights.
    assert prefers_log(logged(10, 2), model_of(weights)) == wins
    assert prefers_log(logged(5, 2, 2), model_of(weights)) == wins
    assert prefers_log(logged(10, 2, head_training=HeadTraining.CLIENT), model_of(weights - 7, 7)) == wins
    assert prefers_log(logged(10, 2), model_of(weights - 7, 7)) == (weights - 7 > 40)


def test_a_replay_must_be_cheap_for_the_bytes_it_saves() -> None:
    # n directions over d weights: n d additions against REPLAY_ADDITIONS_PER_BYTE (4 d - 8 n); for large d the limit is n = 4 times the rate.
    weights = 10**9
    limit = 4 * REPLAY_ADDITIONS_PER_BYTE
    assert prefers_log(logged(limit // 4 - 1, 4), model_of(weights))
    assert not prefers_log(logged(limit // 4 + 1, 4), model_of(weights))


@pytest.mark.parametrize("weights", [50, 1000, 10**6])
def test_whether_a_log_is_preferred_changes_once_as_it_grows(weights: int) -> None:
    preferred = [prefers_log(logged(1, groups), model_of(weights)) for groups in range(1, 3 * weights if weights < 10**4 else 5000)]
    assert preferred[0]
    assert not preferred[-1]
    assert preferred == sorted(preferred, reverse=True)
