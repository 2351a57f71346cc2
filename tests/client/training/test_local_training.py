"""A client's round against a naive twin: plain torch losses, dense directions, the formulas written out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from heron_client.network.upload import UploadRequest
from heron_client.training.parameters import LocalParameters
from heron_common.algorithm.plan import ClientOptimiser, Estimator, Objective, Plan
from heron_common.algorithm.presets import PRESETS
from heron_common.data.partition import SampleOrder
from heron_common.numerics.directions import Directions, derive_seed
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.protocol.messages import PeakMemory
from tests.client.models import TinyModel
from tests.client.rounds import ROUND, SCALE, Network, run_round, small_plan


def _plan(**changes: Any) -> Plan:
    return small_plan(**{"relative_step": 0.02, **changes})


def _naive(tiny: TinyModel, plan: Plan, theta: Any) -> Any:
    """The same round in float64 formulas over dense directions."""
    parameters = LocalParameters(tiny.model.to_spec())
    layout = parameters.trained_layout(plan.trains_head)
    d = layout.num_parameters
    data = np.random.default_rng(7).standard_normal((40, *tiny.model.input_shape)).astype(np.float32)
    labels = np.arange(40) % 3
    theta = theta.astype(np.float64)
    order = SampleOrder(9, "a", round_reference=ROUND, num_examples=40, batch_size=plan.batch_size)
    moments: list[float] = []
    first, second = np.zeros(d), np.zeros(d)

    def losses(weights: Any, rows: Any) -> Any:
        return tiny.torch_losses(weights.astype(np.float32), data[rows], labels[rows])[1].astype(np.float64)

    for step in range(plan.local_steps):
        indices = order.indices(step)
        directions = Directions(derive_seed(9, "a", round_reference=ROUND, purpose="direction", index=step), plan.distribution, layout)
        c = []
        for group in range(plan.direction_groups):
            rows = indices[group * plan.group_size : (group + 1) * plan.group_size]
            shift = np.zeros_like(theta)
            shift[:d] = plan.smoothing_radius * SCALE * directions.materialise(group)
            if plan.difference is FiniteDifference.FORWARD:
                c.append((losses(theta + shift, rows) - losses(theta, rows)).mean() / plan.smoothing_radius)
            else:
                c.append((losses(theta + shift, rows) - losses(theta - shift, rows)).mean() / (2 * plan.smoothing_radius))
        # Three steps are within the plain mean's part of the running second moment.
        moments.append(float(np.mean(np.square(c))))
        estimate = sum(value * SCALE * directions.materialise(g).astype(np.float64) for g, value in enumerate(c)) / len(c)
        if plan.optimiser is ClientOptimiser.SGD:
            theta[:d] -= plan.learning_rate * estimate
        elif plan.optimiser is ClientOptimiser.SCALAR_ADAPTIVE:
            theta[:d] -= plan.relative_step * np.sqrt(len(c)) * estimate / np.sqrt(np.mean(moments))
        else:
            first, second = 0.9 * first + 0.1 * estimate, 0.999 * second + 0.001 * estimate**2
            corrected = np.sqrt(second / (1 - 0.999 ** (step + 1)))
            theta[:d] -= plan.learning_rate * first / (1 - 0.9 ** (step + 1)) / (corrected + 1e-8)
    return theta


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"direction_groups": 1},
        {"direction_groups": 6},
        {"difference": FiniteDifference.CENTRAL},
        {"optimiser": ClientOptimiser.SGD, "learning_rate": 0.05},
        {"optimiser": ClientOptimiser.ADAM, "learning_rate": 0.01},
        {"upload_interval": 2},
        {
            "head_training": PRESETS["heron-paper"].plan.head_training,
            "distribution": PRESETS["heron-paper"].plan.distribution,
            "direction_groups": 1,
            "optimiser": ClientOptimiser.SGD,
            "learning_rate": 0.02,
        },
    ],
    ids=["heron", "one-group", "six-groups", "central", "sgd", "adam", "every-second-upload", "paper"],
)
def test_a_round_equals_its_naive_twin(tiny: TinyModel, changes: dict[str, Any]) -> None:
    plan = _plan(**changes)
    theta = tiny.random_weights(1)
    done = run_round(tiny, plan, Network(), theta)
    expected = _naive(tiny, plan, theta)
    moved = np.abs(expected - theta).max()
    assert moved > 1e-3
    # float32 losses differ from run to run of different kernels by 1e-7, which the difference quotient divides by mu = 1e-2.
    np.testing.assert_allclose(done.theta, expected, atol=0.02 * moved)


def test_uploads_are_the_activations_of_the_weights_before_the_step(tiny: TinyModel) -> None:
    plan = _plan(upload_interval=2)
    network = Network()
    theta = tiny.random_weights(2)
    run_round(tiny, plan, network, theta)
    assert [request.local_step for request, _ in network.uploads] == [0, 2]
    order = SampleOrder(9, "a", round_reference=ROUND, num_examples=40, batch_size=plan.batch_size)
    data = np.random.default_rng(7).standard_normal((40, *tiny.model.input_shape)).astype(np.float32)
    rows = order.indices(0)
    expected, _ = tiny.torch_losses(theta, data[rows], np.zeros(12, np.int64))
    request, (activations, labels) = network.uploads[0]
    assert len(activations) == request.tensors[0].size_bytes
    np.testing.assert_allclose(np.frombuffer(activations, "<f4").reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(np.frombuffer(labels, "<i8"), rows % 3)


def test_the_same_round_sends_the_same_bytes_again(tiny: TinyModel) -> None:
    theta = tiny.even_weights()
    first, second = Network(), Network()
    one = run_round(tiny, _plan(), first, theta)
    two = run_round(tiny, _plan(), second, theta)
    assert [payload for _, payload in first.uploads] == [payload for _, payload in second.uploads]
    assert np.array_equal(one.theta, two.theta)


def test_a_frozen_round_uploads_and_moves_nothing(tiny: TinyModel) -> None:
    theta = tiny.even_weights()
    network = Network()
    done = run_round(tiny, _plan(objective=Objective.NONE, estimator=Estimator.NONE), network, theta)
    assert len(network.uploads) == 3
    assert np.array_equal(done.theta, theta)
    assert done.meter.count == 0
    assert done.meter.forward_passes == 3 * 12


def test_server_losses_drive_the_step_and_the_head_is_not_needed(tiny: TinyModel) -> None:
    """With the local loss handed back as if the server had judged it, the server-loss round equals the auxiliary round."""
    theta = tiny.random_weights(3)

    def judge(request: UploadRequest, payload: list[bytes]) -> Any:
        z = np.frombuffer(payload[0], "<f4").reshape(request.tensors[0].shape)
        return tiny.torch_head_losses(theta, z, np.tile(np.frombuffer(payload[1], "<i8"), 1 + request.num_probes))

    network = Network(judge)
    by_server = run_round(tiny, _plan(objective=Objective.SERVER), network, theta)
    by_head = run_round(tiny, _plan(), Network(), theta)
    assert all(request.num_probes == 1 for request, _ in network.uploads)
    moved = np.abs(by_head.theta - theta).max()
    np.testing.assert_allclose(by_server.theta, by_head.theta, atol=0.02 * moved)


@pytest.mark.invariant(24)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30])
def test_poisoned_server_losses_never_reach_the_weights(tiny: TinyModel, poison: float) -> None:
    theta = tiny.even_weights()

    def judge(request: UploadRequest, payload: list[bytes]) -> Any:
        losses = np.ones((2, 12), np.float32)
        losses[1] += np.linspace(-1e-2, 1e-2, 12, dtype=np.float32)
        if request.local_step == 1:
            losses[1, :4] = poison
        return losses.reshape(-1)

    done = run_round(tiny, _plan(objective=Objective.SERVER), Network(judge), theta)
    assert bool(np.isfinite(done.theta).all())
    assert float(np.abs(done.theta - theta).max()) <= 3 * SCALE
    assert done.meter.clipped + done.meter.non_finite >= 1
    statistics = done.meter.to_statistics(0.0, PeakMemory())
    assert all(math.isfinite(value) for value in dataclasses.asdict(statistics).values())


def test_forward_passes_are_counted_by_difference(tiny: TinyModel) -> None:
    theta = tiny.even_weights()
    forward = run_round(tiny, _plan(), Network(), theta)
    central = run_round(tiny, _plan(difference=FiniteDifference.CENTRAL, upload_interval=3), Network(), theta)
    # Forward: base and perturbed. Central: two perturbed, and the base pass on the one upload step.
    assert forward.meter.forward_passes == 3 * 2 * 12
    assert central.meter.forward_passes == (3 * 2 + 1) * 12
