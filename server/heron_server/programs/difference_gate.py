"""The other gate before publishing: the plan's finite difference equals autograd's directional derivative, at the radius that fits the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from heron_common.algorithm.plan import Objective, Plan
from heron_common.algorithm.trained_tensors import perturbed_tensors
from heron_common.errors import ParityError
from heron_common.ids import RoundReference
from heron_common.numerics.directions import Directions, derive_seed
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import Float32Array, Float64Array
from heron_common.numerics.zeroth_order import FiniteDifference, directional_derivatives
from heron_common.specification.model_spec import WEIGHTS_BY_DIRECTION
from heron_server.models.split_model import SplitModel, flat_parameters, predict, trained_parameters
from heron_server.programs.client_part import ClientPart
from heron_server.programs.cost import ClientCost, client_cost
from heron_server.programs.parity import NamedRunner, base_feeds, load_runner

DIFFERENCE_TOLERANCE = 0.05
"""Median relative error of the finite difference; a finite difference worse than this points elsewhere than the gradient."""

NUM_DIRECTIONS = 32

COSTLY_FLOPS = 10**11
"""Beyond so many FLOPs of forwards the directions share one group of samples, and so its gradient: a ResNet front's 256 samples would take minutes."""

NUM_COSTLY_DIRECTIONS = 8

GRADIENT_ROWS = 32
"""Samples of one backward pass of the gate: a whole group's activations may be a gigabyte."""


MeasureDifference = Callable[[SplitModel, Plan, bytes, Float64Array, int], float]
"""`difference_error`, or what stands in for it."""

MeasureCost = Callable[[SplitModel, bool], ClientCost]
"""`client_cost`, or what stands in for it."""


def difference_error(
    model: SplitModel, plan: Plan, program: bytes, scales: Float64Array, seed: int, count: MeasureCost = client_cost
) -> float:
    """Return the median over directions of |finite difference - derivative| / |derivative|, on random samples.

    Each direction has a group of samples of its own, or where that is costly all have the same one, or as much of it as the budget allows: of fewer
    samples a difference is no truer.
    """
    forward_flops, group_size = count(model, plan.needs_head).forward_flops, plan.group_size
    costly = NUM_DIRECTIONS * group_size * forward_flops > COSTLY_FLOPS
    num_directions, num_groups = (NUM_COSTLY_DIRECTIONS, 1) if costly else (NUM_DIRECTIONS, NUM_DIRECTIONS)
    if costly:
        run_size = min(plan.micro_batch, group_size)
        affordable = COSTLY_FLOPS // (NUM_COSTLY_DIRECTIONS * forward_flops) // run_size * run_size
        group_size = min(group_size, max(affordable, run_size))
    generator = np.random.Generator(np.random.Philox(key=seed))
    x, y = model.random_batch(num_groups * group_size, generator)
    layout = FlatLayout(perturbed_tensors(plan, model.to_spec()))
    directions = Directions(
        derive_seed(seed, "parity", round_reference=RoundReference(0, 0), purpose="parity", index=0), plan.distribution, layout
    )
    theta = _joint_flat(model)[: layout.num_parameters]
    run = _loss_runner(model, plan, load_runner(program))
    errors = []
    for k in range(num_directions):
        if k < num_groups:
            rows = slice(k * group_size, (k + 1) * group_size)
            base = run(theta, x[rows], y[rows]) if plan.difference is FiniteDifference.FORWARD else None
            gradient = _gradient(model, plan, x=x[rows], y=y[rows])
        plus, minus, direction = np.empty_like(theta), np.empty_like(theta), np.zeros_like(theta)
        directions.add(k, plan.smoothing_radius * scales, base=theta, target=plus)
        directions.add(k, -plan.smoothing_radius * scales, base=theta, target=minus)
        directions.add(k, scales, base=direction, target=direction)
        other = run(minus, x[rows], y[rows]) if base is None else base
        found = directional_derivatives(
            run(plus, x[rows], y[rows]), other, direction_groups=1, smoothing_radius=plan.smoothing_radius, difference=plan.difference
        )[0]
        exact = float(np.dot(gradient, direction.astype(np.float64)))
        errors.append(abs(found - exact) / max(abs(exact), 1e-12))
    return float(np.median(errors))


def check_difference(
    model: SplitModel, plan: Plan, *, program: bytes, scales: Float64Array, seed: int, measure: MeasureDifference = difference_error
) -> float:
    """Compare the plan's finite difference with autograd's directional derivative; return the median relative error of 32 directions.

    Raises:
        ParityError: it exceeds DIFFERENCE_TOLERANCE; the message names a smoothing radius that would pass.

    """
    error = measure(model, plan, program, scales, seed)
    if error <= DIFFERENCE_TOLERANCE:
        return error
    radius = fitting_radius(model, plan, program=program, scales=scales, seed=seed, measure=measure)
    raise ParityError(
        f"with smoothing_radius {plan.smoothing_radius:g} the finite difference misses the derivative by {error:.1%} "
        f"(median; limit {DIFFERENCE_TOLERANCE:.0%}): use smoothing_radius {radius:g}"
    )


def fitting_radius(
    model: SplitModel, plan: Plan, *, program: bytes, scales: Float64Array, seed: int, measure: MeasureDifference = difference_error
) -> float:
    """Return the radius nearest to the plan's, by powers of two, whose finite difference is within DIFFERENCE_TOLERANCE of the derivative.

    A curved loss wants a smaller one; where weights hardly matter, as an adapter's before it is trained, a larger one lifts the difference out of rounding.

    Raises:
        ParityError: none is.

    """

    def error(exponent: int) -> float:
        radius = plan.smoothing_radius * 2.0**exponent
        return measure(model, dataclasses.replace(plan, smoothing_radius=radius), program, scales, seed)

    if error(0) <= DIFFERENCE_TOLERANCE:
        return plan.smoothing_radius
    smaller, larger = (error(exponent) for exponent in (-1, 1))
    if min(smaller, larger) <= DIFFERENCE_TOLERANCE:
        return plan.smoothing_radius * (0.5 if smaller <= larger else 2.0)
    # The error falls towards one side: curvature grows with the radius, rounding shrinks with it.
    sign = -1 if smaller < larger else 1
    for exponent in range(2, 15):
        if error(sign * exponent) <= DIFFERENCE_TOLERANCE:
            return plan.smoothing_radius * 2.0 ** (sign * exponent)
    raise ParityError(
        f"no smoothing_radius around {plan.smoothing_radius:g} gives a finite difference within {DIFFERENCE_TOLERANCE:.0%}: use a smoother model"
    )


def _joint_flat(model: SplitModel) -> Float32Array:
    """Return front and head in one flat buffer, of which a plan perturbs the beginning."""
    return np.concatenate([flat_parameters(model.front), flat_parameters(model.auxiliary_head)])


def _loss_runner(
    model: SplitModel, plan: Plan, run: NamedRunner
) -> Callable[[Float32Array, npt.NDArray[Any], npt.NDArray[Any]], Float32Array]:
    spec = model.to_spec()
    front, head = FlatLayout(spec.client_model), FlatLayout(spec.auxiliary_head)
    present = _joint_flat(model)

    with_head = plan.objective is Objective.AUXILIARY
    part = ClientPart(model, with_head)
    base = {name: array for name, array in base_feeds(model).items() if name in dict(part.base_inputs())}
    if plan.objective is not Objective.CUT_GRADIENT:
        base |= {f"statistics.{i}": value.numpy() for i, value in enumerate(part.statistics.values())}

    copies = plan.directions_per_run
    size = plan.micro_batch // copies

    def losses(theta: Float32Array, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Float32Array:
        joint = np.concatenate([theta, present[theta.size :]])
        feeds: dict[str, npt.NDArray[Any]] = base | {
            f"client_model.{i}": v for i, v in enumerate(front.views(joint[: front.num_parameters]))
        }
        if plan.objective is Objective.AUXILIARY:
            feeds |= {f"auxiliary_head.{i}": v for i, v in enumerate(head.views(joint[front.num_parameters :]))}
        if copies > 1:
            feeds = base | {WEIGHTS_BY_DIRECTION: np.tile(joint, (copies, 1))}
        pieces = []
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            # The other groups of a run are the same again.
            samples = {"x": np.concatenate([x[rows]] * copies)}
            if plan.objective is Objective.AUXILIARY:
                pieces.append(run({**feeds, **samples, "y": np.concatenate([y[rows]] * copies)})[1][:size])
            elif plan.objective is Objective.CUT_GRADIENT:
                samples["cut_gradient"] = np.concatenate([cut_gradients(model, x[rows], y[rows])] * copies)
                pieces.append(run({**feeds, **samples})[1][:size])
            else:
                with torch.no_grad():
                    z = torch.from_numpy(run({**feeds, **samples})[0][:size])
                    outputs = predict(model.back, z, model.mask(torch.from_numpy(x[rows])))
                    pieces.append(model.sample_losses(outputs, torch.from_numpy(y[rows])).numpy())
        return np.concatenate(pieces)

    return losses


def cut_gradients(model: SplitModel, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Float32Array:
    """Return lambda of each sample at the model's own weights, [B, *cut]: the gradient of its loss at the cut."""
    samples = torch.from_numpy(x)
    with torch.no_grad():
        z = ClientPart(model, with_head=False).present_front(samples)
    z.requires_grad_()
    outputs = predict(model.back, z, model.mask(samples))
    (gradient,) = torch.autograd.grad(model.sample_losses(outputs, torch.from_numpy(y)).sum(), z)
    found: Float32Array = gradient.numpy()
    return found


def _gradient(model: SplitModel, plan: Plan, *, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Float64Array:
    """Return the gradient of the group's mean loss by autograd, flat, of what the plan perturbs."""
    trained = [parameter for part in (model.front, model.auxiliary_head) for _, parameter in trained_parameters(part)]
    parameters = trained[: len(perturbed_tensors(plan, model.to_spec()))]
    gradient = np.zeros(sum(p.numel() for p in parameters), np.float64)
    with_head = plan.objective is Objective.AUXILIARY
    part, step = ClientPart(model, with_head), len(x) if model.batch_statistics else GRADIENT_ROWS
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        samples = torch.from_numpy(x[rows])
        z = part.present_front(samples)
        outputs = part.present_head(samples, z) if with_head else predict(model.back, z, model.mask(samples))
        loss = model.sample_losses(outputs, torch.from_numpy(y[rows])).sum() / len(x)
        gradient += torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]).numpy()
    return gradient
