"""First-order rounds against autograd and torch's optimisers; what goes up in each wire dtype; a retry changes neither bytes nor steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.algorithm.plan import ClientOptimiser, HeadTraining, Objective, Plan
from heron_common.errors import TransportError
from heron_common.numerics.directions import derive_seed
from heron_common.numerics.tensors import Float32Array
from heron_common.numerics.wire_dtypes import WireDtype, decode_rows, encode_rows
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.protocol.messages import PeakMemory, UploadPurpose
from tests.client.models import TinyModel
from tests.client.rounds import ROUND, RUN_SEED, Network, batch, run_round, small_plan

Twin = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
RATE = 0.05


def exact(preset: str = "cse-fsl", **changes: Any) -> Plan:
    return small_plan(preset, **{"learning_rate": RATE, "local_steps": 4, **changes})


def naive(tiny: TinyModel, plan: Plan, theta: Float32Array, make: Twin) -> Float32Array:
    """The same round by autograd on whole batches."""
    front = sum(s.num_elements for s in tiny.model.to_spec().client_model)
    weights = torch.from_numpy(theta.copy())
    trained = weights if plan.trains_head else weights[:front]
    optimiser = make([trained])
    for step in range(plan.local_steps):
        trained.grad = torch.from_numpy(tiny.torch_gradient(weights.numpy(), *batch(plan, step))[: trained.numel()])
        optimiser.step()
    return weights.numpy()


OPTIMISERS: list[tuple[dict[str, Any], Twin]] = [
    ({"optimiser": ClientOptimiser.SGD}, lambda p: torch.optim.SGD(p, RATE)),
    ({"optimiser": ClientOptimiser.MOMENTUM}, lambda p: torch.optim.SGD(p, RATE, momentum=0.9)),
    ({"optimiser": ClientOptimiser.ADAM}, lambda p: torch.optim.Adam(p, RATE)),
    ({"optimiser": ClientOptimiser.ADAMW, "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.1)),
]


@pytest.mark.parametrize("preset", ["cse-fsl", "fsl-sage"])
@pytest.mark.parametrize(("changes", "make"), OPTIMISERS, ids=[c["optimiser"].value for c, _ in OPTIMISERS])
def test_a_first_order_round_is_torchs(tiny: TinyModel, preset: str, changes: dict[str, Any], make: Twin) -> None:
    plan = exact(preset, **changes)
    theta = tiny.random_weights(6)
    done = run_round(tiny, plan, Network(), theta)
    expected = naive(tiny, plan, theta, make)
    # Adam divides a gradient by its own size, which shows float32 rounding where a gradient nearly vanishes (that of a bias before a norm is zero).
    steady = np.abs(tiny.torch_gradient(theta, *batch(plan, 0))) > 1e-3
    np.testing.assert_allclose(done.theta[steady], expected[steady], rtol=1e-3, atol=1e-4)
    front = sum(s.num_elements for s in tiny.model.to_spec().client_model)
    assert np.abs(expected - theta)[:front].max() > 1e-2
    assert bool(np.array_equal(done.theta[front:], theta[front:])) == (preset == "fsl-sage")


@pytest.mark.parametrize("interval", [1, 2, 4])
def test_steps_without_an_upload_are_steps_all_the_same(tiny: TinyModel, interval: int) -> None:
    theta = tiny.random_weights(6)
    network = Network()
    every = run_round(tiny, exact(), Network(), theta)
    some = run_round(tiny, exact(upload_interval=interval), network, theta)
    assert [request.local_step for request, _ in network.uploads] == list(range(0, 4, interval))
    assert all(request.purpose is UploadPurpose.TRAIN for request, _ in network.uploads)
    assert some.theta.tobytes() == every.theta.tobytes()
    assert some.meter.losses == every.meter.losses


def test_the_mean_local_loss_is_reported(tiny: TinyModel) -> None:
    theta = tiny.random_weights(6)
    plan = exact(local_steps=1)
    done = run_round(tiny, plan, Network(), theta)
    _, losses = tiny.torch_losses(theta, *batch(plan, 0))
    assert done.meter.to_statistics(0.0, PeakMemory()).mean_local_loss == pytest.approx(float(losses.mean()), rel=1e-4)


def test_first_order_rounds_submit_their_weights(tiny: TinyModel) -> None:
    done = run_round(tiny, exact(), Network(), tiny.random_weights(6))
    submission = done.round.submission()
    assert [spec.name for spec in submission.tensors] == ["client_model", "auxiliary_head"]
    assert np.concatenate(submission.arrays).tobytes() == done.theta.tobytes()


STILL: list[tuple[str, dict[str, Any]]] = [
    *(("heron", {"optimiser": optimiser}) for optimiser in ClientOptimiser),
    *(("cse-fsl", {"optimiser": optimiser}) for optimiser in ClientOptimiser if optimiser is not ClientOptimiser.SCALAR_ADAPTIVE),
    *((name, {}) for name in ("heron-paper", "ho-sfl", "fsl-sage", "sflv2")),
    ("heron-server-loss", {"optimiser": ClientOptimiser.SGD, "difference": FiniteDifference.CENTRAL}),
]


@pytest.mark.invariant(8)
@pytest.mark.invariant(12)
@pytest.mark.parametrize(("preset", "changes"), STILL, ids=[f"{name}-{list(changes.values())}" for name, changes in STILL])
def test_steps_of_length_zero_leave_every_bit_of_the_weights(tiny: TinyModel, preset: str, changes: dict[str, Any]) -> None:
    """Perturbing leaves no trace (invariants 8 and 12)."""
    theta = tiny.random_weights(6)
    plan = small_plan(preset, **{"learning_rate": 0.0, "relative_step": 0.0, **changes})
    random = np.random.default_rng(0)
    judge = (lambda request, _: 1 + random.standard_normal((1 + request.num_probes) * 12)) if plan.num_probes else None
    gradient = (
        (lambda request, _: random.standard_normal(request.answer_tensors[0].shape).astype(np.float32)) if plan.needs_cut_gradient else None
    )
    done = run_round(tiny, plan, Network(judge, gradient), theta)
    assert done.theta.tobytes() == theta.tobytes()
    assert done.meter.forward_passes > 0


@pytest.mark.invariant(22)
@pytest.mark.parametrize("dtype", list(WireDtype))
@pytest.mark.parametrize("preset", ["heron", "cse-fsl", "frozen"])
def test_what_goes_up_stands_for_the_activations_to_within_its_dtypes_rounding(tiny: TinyModel, preset: str, dtype: WireDtype) -> None:
    plan = small_plan(preset, wire_dtype=dtype, local_steps=1)
    theta, network = tiny.random_weights(7), Network()
    run_round(tiny, plan, network, theta)
    ((request, (data, _)),) = network.uploads
    spec = request.tensors[0]
    assert (spec.dtype.value, len(data)) == (dtype.value, spec.size_bytes)
    z, _ = tiny.torch_losses(theta, *batch(plan, 0))
    peaks = np.abs(z).reshape(len(z), -1).max(axis=1).reshape(-1, *[1] * (z.ndim - 1))
    # Half a unit in the last place of 11 and 8 bits, a whole step of 1/127 of the row's largest, and what two runtimes differ by.
    bound = {WireDtype.FLOAT32: 0.0, WireDtype.FLOAT16: 2.0**-11, WireDtype.BFLOAT16: 2.0**-8, WireDtype.INT8: 1 / 127}[dtype] * peaks
    error = np.abs(decode_rows(data, dtype, spec.shape) - z)
    assert np.all(error <= bound + 1e-5 * (1 + peaks))
    assert dtype is WireDtype.FLOAT32 or error.max() > 1e-5


@pytest.mark.parametrize("dtype", list(WireDtype))
def test_rounding_numbers_a_steps_rows_as_if_there_were_no_micro_batches(tiny: TinyModel, dtype: WireDtype) -> None:
    theta, plain, rounded = tiny.random_weights(7), Network(), Network()
    run_round(tiny, small_plan("frozen"), plain, theta)
    run_round(tiny, small_plan("frozen", wire_dtype=dtype), rounded, theta)
    for step, ((request, (whole, _)), (_, (came, _))) in enumerate(zip(plain.uploads, rounded.uploads, strict=True)):
        rows = np.frombuffer(whole, "<f4").reshape(request.tensors[0].shape)
        assert came == bytes(
            encode_rows(
                rows, dtype, noise_seed=derive_seed(RUN_SEED, "a", round_reference=ROUND, purpose="quantise", index=step), first_row=0
            )
        )


@pytest.mark.invariant(19, "the client repeats the same bytes")
@pytest.mark.parametrize("dtype", list(WireDtype))
@pytest.mark.parametrize("preset", ["heron", "heron-paper", "cse-fsl", "frozen"])
def test_a_retry_sends_the_same_bytes_and_the_round_is_the_same(tiny: TinyModel, preset: str, dtype: WireDtype) -> None:
    plan = small_plan(preset, wire_dtype=dtype)
    theta, smooth = tiny.random_weights(8), Network()
    rough = Network(failures=[TransportError("cut"), TransportError("cut again")])
    undisturbed, disturbed = run_round(tiny, plan, smooth, theta), run_round(tiny, plan, rough, theta)
    assert [payload for _, payload in rough.uploads] == [payload for _, payload in smooth.uploads]
    # By the time that the first upload is repeated, the step has moved the weights.
    assert rough.broken == [smooth.uploads[0][1]] * 2
    assert plan.trains_front != bool(np.array_equal(disturbed.theta, theta))
    assert disturbed.theta.tobytes() == undisturbed.theta.tobytes()
    assert disturbed.meter.to_statistics(0.0, PeakMemory()) == undisturbed.meter.to_statistics(0.0, PeakMemory())


@pytest.mark.invariant(19, "the client repeats the same bytes")
def test_a_retry_of_probes_sends_the_same_copies_again(tiny: TinyModel) -> None:
    plan = small_plan("heron-server-loss", num_directions=2, difference=FiniteDifference.CENTRAL)
    theta = tiny.random_weights(8)

    def judge(request: Any, payload: list[bytes]) -> Any:
        z = np.frombuffer(payload[0], "<f4").reshape(request.tensors[0].shape)
        return tiny.torch_head_losses(theta, z, np.tile(np.frombuffer(payload[1], "<i8"), 1 + request.num_probes))

    smooth, rough = Network(judge), Network(judge, failures=[TransportError("cut")] * 2)
    one, two = run_round(tiny, plan, smooth, theta), run_round(tiny, plan, rough, theta)
    assert rough.broken == [smooth.uploads[0][1]] * 2
    assert [payload for _, payload in rough.uploads] == [payload for _, payload in smooth.uploads]
    assert one.theta.tobytes() == two.theta.tobytes() != theta.tobytes()


@pytest.mark.invariant(18)
@pytest.mark.parametrize(
    "changes",
    [
        {"num_directions": 4},
        {"direction_groups": 6},
        {"difference": FiniteDifference.CENTRAL},
        {"optimiser": ClientOptimiser.ADAM},
        {"head_training": HeadTraining.CLIENT},
        {"objective": Objective.SERVER, "head_training": HeadTraining.NONE},
    ],
    ids=str,
)
def test_the_order_of_samples_does_not_depend_on_how_a_step_probes(tiny: TinyModel, changes: dict[str, Any]) -> None:
    """Directions and data order are streams of their own (invariant 18)."""

    def judge(request: Any, _: Any) -> Any:
        return np.linspace(1, 2, (1 + request.num_probes) * 12)

    plain, other = Network(), Network(judge if "objective" in changes else None)
    run_round(tiny, small_plan("frozen"), plain, tiny.random_weights(9))
    run_round(tiny, small_plan("heron", **changes), other, tiny.random_weights(9))
    assert [payload[1] for _, payload in other.uploads] == [payload[1] for _, payload in plain.uploads]
    for step in range(3):
        assert plain.uploads[step][1][1] == batch(small_plan(), step)[1].astype("<i8").tobytes()
