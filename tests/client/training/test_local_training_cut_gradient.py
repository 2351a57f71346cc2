"""Steps on lambda, the server's gradients at the cut: exact ones are autograd's, differences of <lambda, z> tend to them (invariant 13)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from heron_common.algorithm.plan import ClientOptimiser, Plan, UpdateEncoding
from heron_common.errors import RefusedError, TransportError
from heron_common.numerics.tensors import Float32Array
from heron_common.numerics.update_log import step_directions
from heron_common.numerics.wire_dtypes import WireDtype, decode_rows, encode_rows
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.protocol.messages import PeakMemory
from tests.client.models import TinyModel
from tests.client.rounds import ROUND, RUN_SEED, SCALE, Answer, Network, batch, run_round, small_plan

FORWARD, CENTRAL = FiniteDifference
RATE = 0.05


def num_front(tiny: TinyModel) -> int:
    return sum(s.num_elements for s in tiny.model.to_spec().client_model)


def server(tiny: TinyModel, theta: Float32Array) -> Answer:
    """Return a server whose back is the head in `theta`: it answers with the gradient of each sample's own loss at the cut."""

    def answer(request: Any, payload: list[bytes]) -> Float32Array:
        spec = request.tensors[0]
        z = decode_rows(payload[0], WireDtype(spec.dtype.value), spec.shape)
        gradient: Float32Array = tiny.torch_cut_gradient(theta, z, np.frombuffer(payload[1], "<i8"))
        return gradient

    return answer


def exact(**changes: Any) -> Plan:
    return small_plan("sflv2", **{"optimiser": ClientOptimiser.SGD, "learning_rate": RATE, **changes})


@pytest.mark.invariant(13)
def test_an_exact_round_on_lambda_is_autograds_on_the_whole_model(tiny: TinyModel) -> None:
    """The chain rule over the wire: d<lambda, z>/dtheta at the anchor is dL/dtheta."""
    plan, theta = exact(), tiny.random_weights(11)
    done = run_round(tiny, plan, Network(cut_gradient=server(tiny, theta)), theta)
    expected = theta.copy()
    for step in range(plan.local_steps):
        expected[: num_front(tiny)] -= RATE * tiny.torch_gradient(expected, *batch(plan, step))[: num_front(tiny)]
    moved = np.abs(expected - theta).max()
    assert moved > 1e-3
    np.testing.assert_allclose(done.theta, expected, atol=1e-4 * moved + 1e-6)
    assert not done.meter.losses


@pytest.mark.invariant(22)
@pytest.mark.parametrize("dtype", list(WireDtype))
def test_an_exact_step_is_autograds_on_lambda_as_it_came(tiny: TinyModel, dtype: WireDtype) -> None:
    plan, theta = exact(wire_dtype=dtype, local_steps=1), tiny.random_weights(12)
    cut = tiny.model.to_spec().cut.shape
    sent = np.random.default_rng(0).standard_normal((12, *cut)).astype(np.float32)
    came = decode_rows(encode_rows(sent, dtype, noise_seed=None, first_row=0), dtype, sent.shape)
    done = run_round(tiny, plan, Network(cut_gradient=lambda *_: sent), theta)
    step = RATE * tiny.torch_pullback(theta, batch(plan, 0)[0], came)
    np.testing.assert_allclose(done.theta[: num_front(tiny)], theta[: num_front(tiny)] - step, atol=1e-5 * np.abs(step).max() + 1e-6)
    assert np.array_equal(done.theta[num_front(tiny) :], theta[num_front(tiny) :])
    other = RATE * tiny.torch_pullback(theta, batch(plan, 0)[0], sent)
    assert dtype is WireDtype.FLOAT32 or np.abs(other - step).max() > 1e-6


def coefficients(tiny: TinyModel, theta: Float32Array, network: Network, preset: str, **changes: Any) -> Any:
    """Return the directional derivatives of one step, by group and direction, from what the client logs."""
    wanted = {
        "optimiser": ClientOptimiser.SGD,
        "learning_rate": 1e-3,
        "clip_factor": 1e9,
        "update_encoding": UpdateEncoding.LOG,
        "local_steps": 1,
    }
    plan = small_plan(preset, **wanted | changes)
    (log,) = run_round(tiny, plan, network, theta).round.submission().arrays
    return -log[0] * log[0].size / plan.learning_rate


def exact_derivatives(tiny: TinyModel, theta: Float32Array, num_directions: int) -> Any:
    """Return v_g . grad of the group's mean loss by autograd, direction after direction."""
    plan = small_plan("ho-sfl", num_directions=num_directions)
    x, y = batch(plan, 0)
    layout = run_round(tiny, small_plan("frozen"), Network(), theta).parameters.front_layout
    directions = step_directions(RUN_SEED, "a", reference=ROUND, local_step=0, distribution=plan.distribution, layout=layout)
    found = []
    for index in range(num_directions * plan.direction_groups):
        first = index % plan.direction_groups * plan.group_size
        rows = slice(first, first + plan.group_size)
        gradient = tiny.torch_gradient(theta, x[rows], y[rows])[: layout.num_parameters]
        found.append(SCALE * float(directions.materialise(index).astype(np.float64) @ gradient))
    return np.array(found)


@pytest.mark.invariant(13)
@pytest.mark.parametrize("num_directions", [1, 2])
@pytest.mark.parametrize("difference", [FORWARD, CENTRAL])
def test_differences_of_the_surrogate_tend_to_the_exact_derivatives(
    tiny: TinyModel, difference: FiniteDifference, num_directions: int
) -> None:
    theta = tiny.random_weights(13)
    expected = exact_derivatives(tiny, theta, num_directions)
    errors = []
    for mu in (0.2, 0.02, 0.002):
        network = Network(cut_gradient=server(tiny, theta))
        found = coefficients(tiny, theta, network, "ho-sfl", difference=difference, smoothing_radius=mu, num_directions=num_directions)
        errors.append(float(np.sqrt(np.mean(np.square(found - expected)) / np.mean(np.square(expected)))))
    # Inner products near 1 are rounded by 1e-7, which a radius of 2e-3 turns into 5e-5.
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


@pytest.mark.invariant(13)
@pytest.mark.parametrize("difference", [FORWARD, CENTRAL])
def test_the_surrogates_scalar_is_the_servers_up_to_the_curvature_of_the_back(tiny: TinyModel, difference: FiniteDifference) -> None:
    """What the server's own losses differ by, and what <lambda, z> differs by, agree as mu shrinks."""
    theta = tiny.random_weights(14)

    def judge(request: Any, payload: list[bytes]) -> Any:
        z = np.frombuffer(payload[0], "<f4").reshape(request.tensors[0].shape)
        return tiny.torch_head_losses(theta, z, np.tile(np.frombuffer(payload[1], "<i8"), 1 + request.num_probes))

    gaps = []
    for mu in (0.2, 0.02, 0.004):
        changes: dict[str, Any] = {"difference": difference, "smoothing_radius": mu}
        by_lambda = coefficients(tiny, theta, Network(cut_gradient=server(tiny, theta)), "ho-sfl", **changes)
        by_losses = coefficients(tiny, theta, Network(judge), "heron-server-loss", **changes)
        gaps.append(float(np.abs(by_lambda - by_losses).max() / np.abs(by_losses).max()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.02


@pytest.mark.parametrize("dtype", list(WireDtype))
@pytest.mark.parametrize("preset", ["ho-sfl", "sflv2"])
def test_a_retry_sends_the_same_bytes_and_steps_once(tiny: TinyModel, preset: str, dtype: WireDtype) -> None:
    plan, theta = small_plan(preset, wire_dtype=dtype), tiny.random_weights(15)
    smooth = Network(cut_gradient=server(tiny, theta))
    rough = Network(cut_gradient=server(tiny, theta), failures=[TransportError("cut")] * 2)
    one, two = run_round(tiny, plan, smooth, theta), run_round(tiny, plan, rough, theta)
    assert rough.broken == [smooth.uploads[0][1]] * 2
    assert [payload for _, payload in rough.uploads] == [payload for _, payload in smooth.uploads]
    assert one.theta.tobytes() == two.theta.tobytes() != theta.tobytes()
    assert one.meter.to_statistics(0.0, PeakMemory()) == two.meter.to_statistics(0.0, PeakMemory())


def test_every_upload_asks_for_lambda_and_nothing_else_is_sent(tiny: TinyModel) -> None:
    plan, theta = exact(), tiny.random_weights(16)
    network = Network(cut_gradient=server(tiny, theta))
    run_round(tiny, plan, network, theta)
    assert [request.local_step for request, _ in network.uploads] == [0, 1, 2]
    for request, _ in network.uploads:
        assert [spec.name for spec in request.answer_tensors] == ["cut_gradient"]
        assert (request.num_probes, request.tensors[0].shape[0]) == (0, plan.batch_size)


def test_an_answer_without_lambda_is_refused_and_moves_nothing(tiny: TinyModel) -> None:
    theta = tiny.random_weights(17)
    before = theta.tobytes()
    with pytest.raises(RefusedError, match="got 0"):
        run_round(tiny, exact(), Network(), theta)
    assert theta.tobytes() == before
