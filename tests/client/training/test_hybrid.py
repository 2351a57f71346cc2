"""Some weights by gradients, those before them by differences, in one step: a naive twin of a round, a retry, and a round that diverges."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from heron_client.training.parameters import LocalParameters
from heron_common.algorithm.plan import ClientOptimiser, Plan
from heron_common.algorithm.trained_tensors import perturbed_tensors, trained_tensors
from heron_common.errors import TransportError
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.update_log import step_directions
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.specification.model_spec import ProgramKind
from tests.client.models import tiny_model_of
from tests.client.rounds import ROUND, RUN_SEED, SCALE, Network, batch, run_round, small_plan

PLAN = small_plan("hybrid", clip_factor=1e6, learning_rate=0.01)
TINY = tiny_model_of(PLAN)
START = TINY.random_weights(1)


def differences(theta: Any, x: Any, y: Any, *, plan: Plan, step: int) -> list[tuple[float, Any]]:
    """Return (derivative, direction over the whole buffer) of each group."""
    layout = FlatLayout(perturbed_tensors(plan, TINY.model.to_spec()))
    drawn = step_directions(RUN_SEED, "a", reference=ROUND, local_step=step, distribution=plan.distribution, layout=layout)
    found = []
    for group in range(plan.direction_groups):
        direction = np.zeros_like(theta)
        direction[: layout.num_parameters] = SCALE * drawn.materialise(group)
        rows = slice(group * plan.group_size, (group + 1) * plan.group_size)
        plus, minus = (
            TINY.torch_losses(theta + np.float32(sign * plan.smoothing_radius) * direction, x[rows], y[rows])[1].astype(np.float64).mean()
            for sign in (1.0, 0.0 if plan.difference is FiniteDifference.FORWARD else -1.0)
        )
        span = plan.smoothing_radius * (1 if plan.difference is FiniteDifference.FORWARD else 2)
        found.append(((plus - minus) / span, direction))
    return found


@pytest.mark.parametrize("difference", FiniteDifference)
def test_a_round_is_a_step_of_adam_and_a_relative_step_side_by_side(difference: FiniteDifference) -> None:
    """The naive twin: torch's Adam on its own weights, a sum over groups on the others, both at the weights before the step."""
    plan = dataclasses.replace(PLAN, difference=difference, local_steps=1)
    exact = sum(spec.num_elements for spec in perturbed_tensors(plan, TINY.model.to_spec()))
    x, y = batch(plan, 0)
    theta = torch.from_numpy(START.copy())
    derivatives = differences(START, x, y, plan=plan, step=0)
    moment = np.mean([c * c for c, _ in derivatives])
    weights = theta[exact:].clone().requires_grad_()
    optimiser = torch.optim.Adam([weights], plan.learning_rate)
    weights.grad = torch.from_numpy(TINY.torch_gradient(START, x, y)[exact:])
    optimiser.step()
    expected = START.copy()
    for derivative, direction in derivatives:
        expected -= np.float32(plan.relative_step * derivative / math.sqrt(plan.direction_groups * moment)) * direction
    expected[exact:] = weights.detach().numpy()
    done = run_round(TINY, plan, Network(), START)
    np.testing.assert_allclose(done.theta, expected, rtol=2e-3, atol=2e-5)
    assert np.abs(done.theta[:exact] - START[:exact]).min() > 0 and done.meter.count == plan.direction_groups


def test_the_pieces_of_the_flat_buffer_are_those_that_the_programs_have() -> None:
    spec = TINY.model.to_spec()
    assert [tensor.name for tensor in perturbed_tensors(PLAN, spec)] == ["0.0.weight", "0.0.bias"]
    assert trained_tensors(PLAN, spec) == spec.client_model + spec.auxiliary_head
    parameters = LocalParameters(spec)
    program = TINY.load(ProgramKind.GRADIENT, parameters)
    assert program.gradients.size == parameters.theta.size - FlatLayout(perturbed_tensors(PLAN, spec)).num_parameters


@pytest.mark.parametrize("interval", [1, 2])
def test_a_repeated_upload_has_the_same_bytes_and_changes_nothing(interval: int) -> None:
    plan = dataclasses.replace(PLAN, upload_interval=interval)
    undisturbed, disturbed = Network(), Network(failures=[TransportError("gone"), TransportError("gone")])
    one, other = run_round(TINY, plan, undisturbed, START), run_round(TINY, plan, disturbed, START)
    assert len(disturbed.broken) == 2
    assert [payload for _, payload in undisturbed.uploads] == [payload for _, payload in disturbed.uploads]
    assert np.array_equal(one.theta, other.theta), "a client that starts its round again sends the same update"
    assert one.meter.forward_equivalents == other.meter.forward_equivalents


@pytest.mark.parametrize("broken", [ProgramKind.GRADIENT, ProgramKind.LOSS])
def test_neither_kind_of_weights_moves_where_one_of_them_diverged(broken: ProgramKind) -> None:
    class Exploding:
        def __init__(self, program: Any) -> None:
            self._program = program

        def __getattr__(self, name: str) -> Any:
            value = getattr(self._program, name)
            return value + np.inf if name == ("gradients" if broken is ProgramKind.GRADIENT else "losses") else value

    done = run_round(TINY, PLAN, Network(), START, wrap=lambda kind, program: Exploding(program) if kind is broken else program)
    assert done.meter.diverged and done.meter.steps_skipped == PLAN.local_steps
    assert np.array_equal(done.theta, START)


@pytest.mark.parametrize("optimiser", [ClientOptimiser.SGD, ClientOptimiser.MOMENTUM])
def test_the_optimiser_is_of_the_exact_weights_alone(optimiser: ClientOptimiser) -> None:
    exact = sum(spec.num_elements for spec in perturbed_tensors(PLAN, TINY.model.to_spec()))
    one, other = (
        run_round(TINY, dataclasses.replace(PLAN, optimiser=o, local_steps=1), Network(), START).theta for o in (PLAN.optimiser, optimiser)
    )
    assert np.array_equal(one[:exact], other[:exact]) and not np.array_equal(one[exact:], other[exact:])
