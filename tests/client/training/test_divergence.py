"""What is not finite, or huge, ends a round's steps: weights stay the last good ones, uploads go on, the report says so (invariant 24)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from heron_client.training.local_training import EXPLODED
from heron_common.algorithm.plan import ClientOptimiser, Plan, UpdateEncoding
from heron_common.algorithm.plan_counts import forward_equivalents
from heron_common.numerics.update_log import weights_digest
from heron_common.numerics.wire_dtypes import WireDtype
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.protocol.messages import PeakMemory
from tests.client.models import TinyModel
from tests.client.rounds import Finished, Network, run_round, small_plan

STEPS = 4
BAD_STEP = 2
NOT_FINITE = [math.nan, math.inf, -math.inf]
POISON = [math.nan, -math.inf, 1e30, -3e38]
"""Not finite and huge, of both signs."""
EXACT = [ClientOptimiser.SGD, ClientOptimiser.MOMENTUM, ClientOptimiser.ADAM]
ZEROTH = [ClientOptimiser.SCALAR_ADAPTIVE, *EXACT]


class Poisoned:
    """A program that writes poison over one of its outputs, from one of its runs to another."""

    def __init__(self, program: Any, output: str, poison: float, first_run: int, last_run: float = math.inf) -> None:
        self._program, self._output, self._poison = program, output, poison
        self._runs, self._first, self._last = 0, first_run, last_run

    def run(self, *arguments: Any) -> None:
        self._program.run(*arguments)
        if self._first <= self._runs < self._last:
            getattr(self._program, self._output)[:] = self._poison
        self._runs += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)


def plan_of(preset: str, **changes: Any) -> Plan:
    return small_plan(preset, **{"local_steps": STEPS, "learning_rate": 0.02, "update_encoding": UpdateEncoding.DENSE, **changes})


def check_stopped(tiny: TinyModel, done: Finished, good: Finished, network: Network, bad_step: int = BAD_STEP) -> None:
    """The round stopped stepping at `bad_step`: as if it had been `good`, a round of the steps before, but for the uploads and the report."""
    assert done.theta.tobytes() == good.theta.tobytes()
    assert [request.local_step for request, _ in network.uploads] == list(range(STEPS))
    statistics = done.meter.to_statistics(0.0, PeakMemory())
    assert (statistics.diverged, statistics.steps_skipped) == (True, STEPS - bad_step)
    assert all(math.isfinite(value) for value in dataclasses.asdict(statistics).values())
    before = good.meter.to_statistics(0.0, PeakMemory())
    assert (statistics.second_moment, statistics.derivative_quantile) == (before.second_moment, before.derivative_quantile)
    submission = done.round.submission()
    assert submission.weights_sha256 == weights_digest(np.concatenate(submission.arrays)) == good.round.submission().weights_sha256


@pytest.mark.invariant(24)
@pytest.mark.parametrize("optimiser", EXACT)
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("output", ["gradients", "losses"])
def test_a_bad_gradient_or_loss_ends_a_first_order_rounds_steps(
    tiny: TinyModel, output: str, poison: float, optimiser: ClientOptimiser
) -> None:
    plan, theta, network = plan_of("cse-fsl", optimiser=optimiser), tiny.random_weights(21), Network()
    runs = plan.batch_size // plan.micro_batch
    # One bad micro-batch is enough, and good ones after it do not bring the steps back.
    once = (BAD_STEP * runs + 3, BAD_STEP * runs + 4)
    done = run_round(tiny, plan, network, theta, wrap=lambda _, program: Poisoned(program, output, poison, *once))
    good = run_round(tiny, dataclasses.replace(plan, local_steps=BAD_STEP), Network(), theta)
    assert good.theta.tobytes() != theta.tobytes()
    check_stopped(tiny, done, good, network)


def test_a_gradient_just_within_the_limit_is_a_step_and_just_beyond_is_none(tiny: TinyModel) -> None:
    theta = tiny.random_weights(21)
    for size, diverged in ((0.99 * EXPLODED, False), (1.01 * EXPLODED, True)):
        # The mean over the batch of what a micro-batch's sum says.
        per_run = size * 2
        plan = plan_of("cse-fsl", local_steps=1, learning_rate=1e-12, optimiser=ClientOptimiser.SGD)
        done = run_round(tiny, plan, Network(), theta, wrap=lambda _, program, per_run=per_run: Poisoned(program, "gradients", per_run, 0))
        assert done.meter.diverged == diverged
        assert bool(np.array_equal(done.theta, theta)) == diverged


@pytest.mark.invariant(24)
@pytest.mark.parametrize("optimiser", ZEROTH)
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("side", ["base", "perturbed"])
def test_losses_that_are_bad_throughout_end_a_zeroth_order_rounds_steps(
    tiny: TinyModel, side: str, poison: float, optimiser: ClientOptimiser
) -> None:
    plan, theta, network = plan_of("heron", optimiser=optimiser), tiny.random_weights(22), Network()
    runs = plan.batch_size // plan.micro_batch
    first = 2 * runs * BAD_STEP + (0 if side == "base" else runs)
    done = run_round(tiny, plan, network, theta, wrap=lambda _, program: Poisoned(program, "losses", poison, first, first + runs))
    good = run_round(tiny, dataclasses.replace(plan, local_steps=BAD_STEP), Network(), theta)
    check_stopped(tiny, done, good, network)


@pytest.mark.parametrize("difference", list(FiniteDifference))
def test_losses_that_explode_alike_end_the_steps_although_their_differences_vanish(tiny: TinyModel, difference: FiniteDifference) -> None:
    plan, theta, network = plan_of("heron", difference=difference), tiny.random_weights(22), Network()
    runs = plan.batch_size // plan.micro_batch
    passes = forward_equivalents(plan) // plan.batch_size // STEPS
    first = passes * runs * BAD_STEP
    exploded = 10 * EXPLODED
    done = run_round(
        tiny, plan, network, theta, wrap=lambda _, program: Poisoned(program, "losses", exploded, first, first + passes * runs)
    )
    good = run_round(tiny, dataclasses.replace(plan, local_steps=BAD_STEP), Network(), theta)
    check_stopped(tiny, done, good, network)


@pytest.mark.invariant(24)
@pytest.mark.parametrize("optimiser", ZEROTH)
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("groups", [1, 3])
def test_a_servers_bad_losses_in_the_very_first_step_move_nothing(
    tiny: TinyModel, groups: int, poison: float, optimiser: ClientOptimiser
) -> None:
    """Nothing is known yet by which to call a derivative an outlier."""
    plan, theta = plan_of("heron-server-loss", optimiser=optimiser, direction_groups=groups), tiny.random_weights(23)

    def judge(request: Any, _: Any) -> Any:
        losses = np.ones((2, 12), np.float32)
        losses[1] = poison if request.local_step == 0 else 1.1
        return losses.reshape(-1)

    network = Network(judge)
    done = run_round(tiny, plan, network, theta)
    assert done.theta.tobytes() == theta.tobytes()
    assert len(network.uploads) == STEPS
    statistics = done.meter.to_statistics(0.0, PeakMemory())
    assert (statistics.diverged, statistics.steps_skipped) == (True, STEPS)
    assert (statistics.second_moment, statistics.derivative_quantile) == (0.0, 0.0)


@pytest.mark.parametrize("poison", NOT_FINITE)
def test_one_bad_group_costs_its_own_direction_only(tiny: TinyModel, poison: float) -> None:
    plan, theta = plan_of("heron-server-loss", optimiser=ClientOptimiser.SGD), tiny.random_weights(24)

    def judge(request: Any, _: Any) -> Any:
        losses = np.ones((2, 12), np.float32)
        losses[1] += np.linspace(1e-3, 1e-2, 12, dtype=np.float32)
        if request.local_step == BAD_STEP:
            losses[1, 5] = poison
        return losses.reshape(-1)

    done = run_round(tiny, plan, Network(judge), theta)
    (log,) = done.round.submission(UpdateEncoding.LOG).arrays
    statistics = done.meter.to_statistics(0.0, PeakMemory())
    assert (statistics.diverged, statistics.steps_skipped, statistics.differences_non_finite) == (False, 0, 1)
    assert [(int(step), int(group)) for step, group in np.argwhere(log == 0)] == [(BAD_STEP, 1)]
    assert bool(np.isfinite(done.theta).all())


def lambda_with(poison: float, bad_step: int, everywhere: bool) -> Any:
    def answer(request: Any, _: Any) -> Any:
        (spec,) = request.answer_tensors
        gradient = np.random.default_rng(request.local_step).standard_normal(spec.shape).astype(np.float32)
        if request.local_step == bad_step:
            gradient[... if everywhere else (7, 0, 1, 1)] = poison
        return gradient

    return answer


@pytest.mark.invariant(24)
@pytest.mark.parametrize("dtype", list(WireDtype))
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_one_bad_entry_of_lambda_ends_an_exact_rounds_steps(tiny: TinyModel, poison: float, dtype: WireDtype) -> None:
    plan, theta = plan_of("sflv2", wire_dtype=dtype), tiny.even_weights()
    network = Network(cut_gradient=lambda_with(poison, BAD_STEP, everywhere=False))
    done = run_round(tiny, plan, network, theta)
    good = run_round(
        tiny, dataclasses.replace(plan, local_steps=BAD_STEP), Network(cut_gradient=lambda_with(poison, BAD_STEP, everywhere=False)), theta
    )
    check_stopped(tiny, done, good, network)


@pytest.mark.invariant(24)
@pytest.mark.parametrize("dtype", list(WireDtype))
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("difference", list(FiniteDifference))
def test_a_lambda_that_is_bad_throughout_ends_the_steps_by_differences(
    tiny: TinyModel, difference: FiniteDifference, poison: float, dtype: WireDtype
) -> None:
    plan, theta = plan_of("ho-sfl", wire_dtype=dtype, difference=difference), tiny.random_weights(25)
    network = Network(cut_gradient=lambda_with(poison, BAD_STEP, everywhere=True))
    done = run_round(tiny, plan, network, theta)
    good = run_round(
        tiny, dataclasses.replace(plan, local_steps=BAD_STEP), Network(cut_gradient=lambda_with(poison, BAD_STEP, everywhere=True)), theta
    )
    check_stopped(tiny, done, good, network)


@pytest.mark.invariant(24)
@pytest.mark.parametrize("preset", ["ho-sfl", "sflv2"])
@pytest.mark.parametrize("optimiser", EXACT)
def test_a_huge_lambda_moves_nothing(tiny: TinyModel, preset: str, optimiser: ClientOptimiser) -> None:
    plan, theta = plan_of(preset, optimiser=optimiser), tiny.random_weights(26)
    network = Network(cut_gradient=lambda_with(1e30, 0, everywhere=True))
    done = run_round(tiny, plan, network, theta)
    assert done.theta.tobytes() == theta.tobytes()
    assert (done.meter.diverged, done.meter.steps_skipped, len(network.uploads)) == (True, STEPS, STEPS)


@pytest.mark.parametrize("preset", ["heron", "cse-fsl", "heron-paper"])
def test_weights_that_are_no_numbers_report_themselves(tiny: TinyModel, preset: str) -> None:
    """By the programs' own arithmetic, nothing written over."""
    theta = tiny.random_weights(27)
    theta[-3:] = [3e38, -3e38, 0.0]  # The head's bias, one entry a class: the second class's loss overflows.
    network = Network()
    done = run_round(tiny, plan_of(preset), network, theta)
    assert done.theta.tobytes() == theta.tobytes()
    assert (done.meter.diverged, done.meter.steps_skipped, len(network.uploads)) == (True, STEPS, STEPS)


def test_a_round_that_rests_never_diverges(tiny: TinyModel) -> None:
    done = run_round(
        tiny, plan_of("frozen"), Network(), tiny.random_weights(28), wrap=lambda _, program: Poisoned(program, "activations", math.nan, 0)
    )
    assert (done.meter.diverged, done.meter.steps_skipped) == (False, 0)


@pytest.mark.parametrize("optimiser", EXACT)
def test_a_step_that_would_fling_the_weights_away_is_not_taken(tiny: TinyModel, optimiser: ClientOptimiser) -> None:
    # Normalisation hides the size of weights from the loss: without a limit they would grow while every figure stays finite.
    plan = plan_of("cse-fsl", optimiser=optimiser, learning_rate=1e30)
    network = Network()
    theta = tiny.random_weights(21)
    done = run_round(tiny, plan, network, theta)
    assert done.theta.tobytes() == theta.tobytes()
    assert done.meter.diverged and done.meter.steps_skipped == STEPS
    assert len(network.uploads) == STEPS
