"""Several directions in one run of a program: the same round as one at a time, and nothing that a server may say of them breaks a client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from heron_client.training.parameters import LocalParameters
from heron_common.algorithm.plan import HeadTraining
from heron_common.errors import TransportError
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.specification.model_spec import ProgramKind
from tests.client.models import tiny_model
from tests.client.rounds import Network, run_round, small_plan

GROUPS = 6
"""Of two samples: a run takes one, or three of them."""

PLANS: list[tuple[str, dict[str, Any]]] = [
    ("heron", {}),
    ("heron", {"upload_interval": 3, "num_directions": 2}),
    ("heron", {"head_training": HeadTraining.CLIENT, "difference": FiniteDifference.CENTRAL}),
    ("heron-server-loss", {"num_directions": 2}),
    ("ho-sfl", {"difference": FiniteDifference.FORWARD}),
    ("ho-sfl", {}),
]


@pytest.mark.parametrize(("preset", "changes"), PLANS, ids=[f"{name}-{list(changes)}" for name, changes in PLANS])
def test_a_round_is_the_same_however_many_directions_a_run_takes(preset: str, changes: dict[str, Any]) -> None:
    theta, found = tiny_model(2).random_weights(3), []
    for micro_batch in (2, 6):
        tiny = tiny_model(micro_batch)
        plan = small_plan(preset, direction_groups=GROUPS, micro_batch=micro_batch, **changes)
        assert plan.directions_per_run == micro_batch // 2
        network = Network(*answers(tiny, theta, plan))
        done = run_round(tiny, plan, network, theta)
        found.append((done.theta, np.concatenate(done.meter.losses or [[0.0]], axis=None), network.uploads, done.meter.forward_passes))
    (one, losses, uploads, passes), (several, others, other_uploads, other_passes) = found
    moved = np.abs(one - theta).max()
    assert moved > 1e-3
    np.testing.assert_allclose(several, one, atol=1e-3 * moved)
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    assert passes == other_passes and len(uploads) == len(other_uploads)
    for (_, payload), (_, other) in zip(uploads, other_uploads, strict=True):
        z, z_other = (np.frombuffer(p[0], np.float32) for p in (payload, other))
        np.testing.assert_allclose(z_other, z, atol=2e-3 * np.abs(z).max())
        assert payload[1:] == other[1:]


def answers(tiny: Any, theta: Any, plan: Any) -> tuple[Any, Any]:
    """Return what judges probes and what gives lambda, the head at its first weights standing in for the server."""

    def judge(request: Any, payload: list[bytes]) -> Any:
        z = np.frombuffer(payload[0], np.float32).reshape(1 + request.num_probes, plan.batch_size, *tiny.model.to_spec().cut.shape)
        labels = np.frombuffer(payload[1], np.int64)
        return np.concatenate([tiny.torch_head_losses(theta, copy, labels) for copy in z])

    def cut_gradient(request: Any, payload: list[bytes]) -> Any:
        z = np.frombuffer(payload[0], np.float32).reshape(plan.batch_size, *tiny.model.to_spec().cut.shape)
        return tiny.torch_cut_gradient(theta, z, np.frombuffer(payload[1], np.int64))

    return judge if plan.num_probes else None, cut_gradient if plan.needs_cut_gradient else None


def test_a_retry_sends_the_same_bytes_where_a_run_takes_several_directions() -> None:
    tiny, theta = tiny_model(6), tiny_model(6).random_weights(8)
    plan = small_plan("heron", direction_groups=GROUPS, micro_batch=6, upload_interval=3, local_steps=5)
    smooth, rough = Network(), Network(failures=[TransportError("cut")] * 2)
    undisturbed, disturbed = run_round(tiny, plan, smooth, theta), run_round(tiny, plan, rough, theta)
    assert rough.broken == [smooth.uploads[0][1]] * 2
    assert [payload for _, payload in rough.uploads] == [payload for _, payload in smooth.uploads]
    assert disturbed.theta.tobytes() == undisturbed.theta.tobytes() != theta.tobytes()


def test_each_group_of_a_run_has_the_losses_of_its_own_weights() -> None:
    tiny = tiny_model(6)
    parameters = LocalParameters(tiny.model.to_spec(), 3)
    program = tiny.load(ProgramKind.LOSS, parameters, directions=3)
    for row in range(3):
        parameters.working[row] = tiny.random_weights(row)
    x = np.random.default_rng(0).standard_normal((6, 1, 6, 6)).astype(np.float32)
    y = np.arange(6) % 3
    program.run(x, y)
    for row in range(3):
        rows = slice(2 * row, 2 * row + 2)
        z, losses = tiny.torch_losses(parameters.working[row], x[rows], y[rows])
        np.testing.assert_allclose(program.losses[rows], losses, rtol=1e-5)
        np.testing.assert_allclose(program.activations[rows], z, atol=1e-5)
