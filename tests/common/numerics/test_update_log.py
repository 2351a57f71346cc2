"""The log of coefficients: a client's round replays to its own weights bit for bit, and nothing else replays to them (invariants 10, 11 and 12)."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import pytest

from heron_common.algorithm.algorithm import Weighting
from heron_common.algorithm.plan import ClientOptimiser, HeadTraining, Objective, UpdateEncoding
from heron_common.ids import RoundReference
from heron_common.numerics.directions import DirectionDistribution, Directions, PerturbationSeed, derive_seed
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import Float32Array
from heron_common.numerics.update_log import apply_coefficients, replay, step_directions, weights_digest
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_server.training.aggregation import aggregation_weights, weighted_mean
from tests.client.models import TinyModel
from tests.client.rounds import ROUND, RUN_SEED, Finished, Network, run_round, small_plan
from tests.common.numerics.estimators import layout_of
from tests.common.numerics.philox import rademacher_sign

RADEMACHER = DirectionDistribution.RADEMACHER
UNEVEN = (0.5, 0.3, 1e-2, 2.0, 0.07, 0.9)
"""A scale of its own for each tensor of front and head."""


def run(
    tiny: TinyModel,
    client_id: str = "a",
    reference: RoundReference = ROUND,
    network: Network | None = None,
    scales: tuple[float, ...] = UNEVEN,
    **changes: Any,
) -> Finished:
    plan = small_plan(**{"learning_rate": 0.3, "update_encoding": UpdateEncoding.LOG, **changes})
    spec = tiny.model.to_spec()
    tensors = len(spec.client_model) + (len(spec.auxiliary_head) if plan.trains_head else 0)
    return run_round(
        tiny, plan, network or Network(), tiny.random_weights(4), client_id=client_id, reference=reference, scales=scales[:tensors]
    )


def trained(done: Finished, with_head: bool = False) -> tuple[FlatLayout, Float32Array]:
    layout = done.parameters.trained_layout(with_head)
    return layout, done.theta[: layout.num_parameters]


def replayed(
    tiny: TinyModel, done: Finished, log: Any, with_head: bool = False, scales: tuple[float, ...] = UNEVEN, **where: Any
) -> Float32Array:
    layout, _ = trained(done, with_head)
    named = {"run_seed": RUN_SEED, "client_id": "a", "reference": ROUND, **where}
    return replay(
        tiny.random_weights(4)[: layout.num_parameters], log, scales=np.array(scales[: len(layout.specs)]), layout=layout, **named
    )


ROUNDS: list[dict[str, Any]] = [
    {},
    {"optimiser": ClientOptimiser.SGD, "learning_rate": 0.05},
    {"local_steps": 1},
    {"local_steps": 7, "direction_groups": 1, "num_directions": 4},
    {"num_directions": 3},
    {"direction_groups": 6, "num_directions": 2, "difference": FiniteDifference.CENTRAL, "optimiser": ClientOptimiser.SGD},
    {"head_training": HeadTraining.CLIENT},
    {"head_training": HeadTraining.CLIENT, "optimiser": ClientOptimiser.SGD, "num_directions": 2, "upload_interval": 2},
]


@pytest.mark.invariant(10)
@pytest.mark.parametrize("changes", ROUNDS, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "heron")
def test_the_log_of_a_round_replays_to_the_clients_weights_bit_for_bit(tiny: TinyModel, changes: dict[str, Any]) -> None:
    done = run(tiny, **changes)
    plan = small_plan(**changes)
    submission = done.round.submission()
    (log,) = submission.arrays
    assert submission.encoding is UpdateEncoding.LOG
    assert log.shape == submission.tensors[0].shape == (plan.local_steps, plan.direction_groups * plan.num_directions)
    assert log.dtype == np.float64
    assert np.count_nonzero(log) == log.size
    came, (_, theta) = replayed(tiny, done, log, plan.trains_head), trained(done, plan.trains_head)
    assert came.tobytes() == theta.tobytes()
    assert weights_digest(came) == submission.weights_sha256 == hashlib.sha256(theta.astype("<f4").tobytes()).digest()


def test_tensors_whose_directions_have_no_scale_stay_as_they_are_and_the_log_replays(tiny: TinyModel) -> None:
    scales = (0.0, 0.3, 0.0, 0.3)
    done = run(tiny, scales=scales)
    (log,) = done.round.submission().arrays
    layout, theta = trained(done)
    assert replayed(tiny, done, log, scales=scales).tobytes() == theta.tobytes()
    before, after = layout.views(tiny.random_weights(4)[: theta.size]), layout.views(theta)
    assert [bool(np.array_equal(a, b)) for a, b in zip(before, after, strict=True)] == [scale == 0 for scale in scales]


def test_the_same_round_also_submits_its_weights_under_the_same_digest(tiny: TinyModel) -> None:
    done = run(tiny)
    dense = done.round.submission(UpdateEncoding.DENSE)
    _, theta = trained(done)
    assert dense.encoding is UpdateEncoding.DENSE
    assert [array.tobytes() for array in dense.arrays] == [theta.tobytes()]
    assert dense.weights_sha256 == done.round.submission().weights_sha256


@pytest.mark.invariant(10)
@pytest.mark.parametrize(
    "where", [{"run_seed": RUN_SEED + 1}, {"client_id": "b"}, {"reference": RoundReference(2, 1)}, {"reference": RoundReference(3, 2)}]
)
def test_a_log_under_another_name_seed_round_or_attempt_arrives_elsewhere(tiny: TinyModel, where: dict[str, Any]) -> None:
    done = run(tiny)
    submission = done.round.submission()
    assert weights_digest(replayed(tiny, done, submission.arrays[0], **where)) != submission.weights_sha256


@pytest.mark.invariant(10)
def test_any_single_coefficient_that_is_changed_arrives_elsewhere(tiny: TinyModel) -> None:
    done = run(tiny, num_directions=2)
    submission = done.round.submission()
    (log,) = submission.arrays
    digests = set()
    for step, direction in itertools.product(*map(range, log.shape)):
        forged = log.copy()
        forged[step, direction] *= 1 + 1e-3
        digests.add(weights_digest(replayed(tiny, done, forged)))
    swapped = log[:, ::-1]
    digests.add(weights_digest(replayed(tiny, done, swapped)))
    assert len(digests) == log.size + 1
    assert submission.weights_sha256 not in digests


def naive_replay(
    start: list[np.float32], log: list[list[float]], scales: list[np.float32], seeds: list[PerturbationSeed]
) -> list[np.float32]:
    """Return the replay by a loop over steps, directions and weights; `scales` has one entry per weight."""
    theta = list(start)
    for seed, row in zip(seeds, log, strict=True):
        for direction, coefficient in enumerate(row):
            for i, scale in enumerate(scales):
                if coefficient != 0:
                    theta[i] = np.float32(
                        theta[i] + np.float32(coefficient * float(scale)) * np.float32(rademacher_sign(seed, direction, i))
                    )
    return theta


@pytest.mark.invariant(10)
def test_a_replay_is_its_naive_twin_bit_for_bit_with_negative_zeros_and_denormals() -> None:
    layout = layout_of(3, 70, 1)
    generator = np.random.default_rng(6)
    start = generator.standard_normal(layout.num_parameters).astype(np.float32)
    start[:6] = [0.0, -0.0, 1e-45, -1e-42, 3e38, -3e38]
    start[40:44] = [-0.0, 0.0, 1e-39, 1.0]
    log = generator.standard_normal((3, 4))
    log[0] = [1e-44, -1e-60, 0.0, -0.0]
    log[2, 1] = 0.0
    scales = np.array([1.0, 0.25, 1e-3])
    reference = RoundReference(5, 0)
    came = replay(start, log, scales=scales, run_seed=3, client_id="ann", reference=reference, layout=layout)
    seeds = [derive_seed(3, "ann", round_reference=reference, purpose="direction", index=step) for step in range(3)]
    expected = naive_replay(list(start), log.tolist(), list(np.repeat(scales, (3, 70, 1))), seeds)
    assert came.tobytes() == np.array(expected, np.float32).tobytes()


def test_a_replay_leaves_what_it_started_from_alone() -> None:
    start = np.ones(9, np.float32)
    start.setflags(write=False)
    assert (
        replay(start, np.ones((2, 1)), scales=np.ones(1), run_seed=1, client_id="a", reference=ROUND, layout=layout_of(9)).tobytes()
        != start.tobytes()
    )
    assert start.tolist() == [1.0] * 9


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_coefficient_of_zero_moves_no_bit_not_even_a_negative_zeros(zero: float) -> None:
    """A client that skips a step adds nothing, so the replay of its zeros may add nothing either: -0.0 + 0.0 is 0.0."""
    theta = np.array([-0.0, 0.0, 1e-45, -1.5] * 20, np.float32)
    before = theta.tobytes()
    apply_coefficients(theta, np.full(5, zero), directions=Directions(PerturbationSeed(1, 2), RADEMACHER, layout_of(80)), scales=np.ones(1))
    assert theta.tobytes() == before


@pytest.mark.parametrize("coefficient", [math.nan, math.inf, -math.inf])
def test_a_forged_coefficient_that_is_not_finite_shows_in_the_weights(coefficient: float) -> None:
    came = replay(
        np.zeros(5, np.float32),
        np.array([[0.5, coefficient]]),
        scales=np.ones(1),
        run_seed=1,
        client_id="a",
        reference=ROUND,
        layout=layout_of(5),
    )
    assert not np.isfinite(came).any()


@pytest.mark.invariant(10)
def test_steps_that_were_skipped_are_zeros_in_the_log_and_replay_to_where_the_client_stopped(tiny: TinyModel) -> None:
    def judge(request: Any, payload: list[bytes]) -> Any:
        losses = np.ones((2, 12), np.float32)
        losses[1] += np.linspace(-1e-2, 1e-2, 12, dtype=np.float32)
        if request.local_step == 2:
            losses[:] = np.nan
        return losses.reshape(-1)

    changes = {"objective": Objective.SERVER, "local_steps": 5}
    done = run(tiny, network=Network(judge), **changes)
    (log,) = done.round.submission().arrays
    assert [bool(row.any()) for row in log] == [True, True, False, False, False]
    assert replayed(tiny, done, log).tobytes() == trained(done)[1].tobytes()
    stopped = run(tiny, network=Network(judge), **changes | {"local_steps": 2})
    assert stopped.theta.tobytes() == done.theta.tobytes()


@pytest.mark.parametrize("index", [0, 1, 4])
def test_the_directions_of_a_step_are_those_of_its_derived_seed(index: int) -> None:
    layout = layout_of(5, 8)
    came = step_directions(3, "ann", reference=ROUND, local_step=index, distribution=RADEMACHER, layout=layout).materialise(2)
    assert came.tolist() == [
        rademacher_sign(derive_seed(3, "ann", round_reference=ROUND, purpose="direction", index=index), 2, i) for i in range(13)
    ]


@pytest.mark.invariant(11)
@pytest.mark.parametrize("rows", [(12, 12, 12), (12, 36, 24)], ids=["alike", "by-rows"])
def test_the_mean_of_clients_weights_is_the_start_plus_the_mean_of_what_their_logs_add(tiny: TinyModel, rows: tuple[int, ...]) -> None:
    names = ("a", "b", "c")
    clients = [run(tiny, client_id=name) for name in names]
    weights = aggregation_weights(list(rows), Weighting.EXAMPLES)
    mean = weighted_mean([trained(client)[1] for client in clients], weights)
    layout, _ = trained(clients[0])
    start = tiny.random_weights(4)[: layout.num_parameters].astype(np.float64)
    scales = np.repeat(UNEVEN[: len(layout.specs)], [s.num_elements for s in layout.specs])
    delta = np.zeros_like(start)
    for name, client, weight in zip(names, clients, weights, strict=True):
        for step, row in enumerate(client.round.submission().arrays[0]):
            directions = step_directions(RUN_SEED, name, reference=ROUND, local_step=step, distribution=RADEMACHER, layout=layout)
            delta += weight * sum(a * scales * directions.materialise(g) for g, a in enumerate(row))
    # One float32 rounding for each of nine additions to weights below 2, and one for the mean.
    np.testing.assert_allclose(mean, start + delta, rtol=0, atol=10 * 2.0**-24 * 2)
    assert np.abs(delta).max() > 1e-3
    again = weighted_mean([trained(client)[1] for client in clients[::-1]], weights[::-1])
    np.testing.assert_allclose(again, mean, rtol=2 * np.finfo(np.float32).eps)


@pytest.mark.invariant(12)
@pytest.mark.parametrize("changes", [{}, {"local_steps": 1}, {"optimiser": ClientOptimiser.ADAM, "update_encoding": UpdateEncoding.DENSE}])
def test_with_one_client_the_mean_is_its_own_weights(tiny: TinyModel, changes: dict[str, Any]) -> None:
    _, theta = trained(run(tiny, **changes))
    for weighting in Weighting:
        assert weighted_mean([theta], aggregation_weights([12], weighting)).tobytes() == theta.tobytes()
