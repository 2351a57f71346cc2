"""The gate before publishing: a program equals its model on the run's own weights, and the plan's finite difference equals autograd's derivative."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from heron_common.assignment import ProgramKind
from heron_common.directions import Directions, derive_seed
from heron_common.errors import ParityError, ProgramError
from heron_common.ids import RoundReference
from heron_common.layout import FlatLayout
from heron_common.plan import Objective, Plan
from heron_common.tensors import Float32Array, Float64Array
from heron_common.zeroth_order import directional_derivatives
from heron_server.models.split_model import SplitModel, flat_parameters
from heron_server.programs.compile import compile_function

TOLERANCE = 1e-4
"""For losses and activations, relative to the largest value of the output (or 1e-3)."""

DIFFERENCE_TOLERANCE = 0.05
"""Median relative error of the finite difference; a finite difference worse than this points elsewhere than the gradient."""

NUM_DIRECTIONS = 32

NamedRunner = Callable[[dict[str, npt.NDArray[Any]]], list[npt.NDArray[Any]]]


@dataclass(frozen=True)
class ParityReport:
    """The largest relative error of any output, and the median relative error of the finite difference (None where nothing is estimated)."""

    output_error: float
    difference_error: float | None


def load_runner(program: bytes) -> NamedRunner:
    """Return a function that runs `program` on named arrays."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise ProgramError(
            f"onnxruntime {onnxruntime.__version__} cannot load the program ({exc}): empty the program cache, or update"
        ) from exc
    return lambda feeds: session.run(None, feeds)


def check_outputs(model: SplitModel, kind: ProgramKind, program: bytes, micro_batch: int, seed: int) -> float:
    """Compare every output with torch on the model's weights; return max|a-b| / max(|b|max, 1e-3).

    Raises:
        ParityError: it exceeds TOLERANCE.

    """
    function = compile_function(model, kind, micro_batch)
    generator = np.random.Generator(np.random.Philox(key=seed))
    x, y = _random_batch(model, micro_batch, generator)
    feeds, arguments = _feeds(model, function.input_names, x, y)
    with torch.no_grad():
        expected = function.module(*_arguments(kind, arguments, model))
    outputs = expected if isinstance(expected, tuple) else (expected,)
    worst = 0.0
    for name, got, want in zip(function.output_names, load_runner(program)(feeds), outputs, strict=True):
        reference = want.numpy()
        error = float(np.abs(got - reference).max() / max(float(np.abs(reference).max()), 1e-3))
        if not error <= TOLERANCE:
            raise ParityError(
                f"output {name!r} of the {kind.value} program differs from the model by {error:.2e} (limit {TOLERANCE}): it is not published"
            )
        worst = max(worst, error)
    return worst


def check_difference(model: SplitModel, plan: Plan, program: bytes, scales: Float64Array, seed: int) -> float:
    """Compare the plan's finite difference with autograd's directional derivative; return the median relative error of 32 directions.

    Raises:
        ParityError: it exceeds DIFFERENCE_TOLERANCE; the message names a smoothing radius that would pass.

    """
    error = difference_error(model, plan, program, scales, seed)
    if error <= DIFFERENCE_TOLERANCE:
        return error
    for halvings in range(1, 15):
        radius = plan.smoothing_radius / 2**halvings
        if difference_error(model, dataclasses.replace(plan, smoothing_radius=radius), program, scales, seed) <= DIFFERENCE_TOLERANCE:
            raise ParityError(
                f"with smoothing_radius {plan.smoothing_radius:g} the finite difference misses the derivative by {error:.0%} "
                f"(median; limit {DIFFERENCE_TOLERANCE:.0%}): use smoothing_radius {radius:g}"
            )
    raise ParityError(
        f"no smoothing_radius from {plan.smoothing_radius:g} down gives a finite difference within {DIFFERENCE_TOLERANCE:.0%}: use a smoother model"
    )


def difference_error(model: SplitModel, plan: Plan, program: bytes, scales: Float64Array, seed: int) -> float:
    """Return the median over directions of |finite difference - derivative| / |derivative|, on random samples, a group for each direction."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    x, y = _random_batch(model, NUM_DIRECTIONS * plan.group_size, generator)
    layout = FlatLayout(model.to_spec().client_model + (model.to_spec().auxiliary_head if plan.trains_head else ()))
    directions = Directions(derive_seed(seed, "parity", RoundReference(0, 0), "parity", 0), plan.distribution, layout)
    theta = _trained_flat(model, plan)
    run = _loss_runner(model, plan, load_runner(program))
    errors = []
    for k in range(NUM_DIRECTIONS):
        rows = slice(k * plan.group_size, (k + 1) * plan.group_size)
        plus, minus, direction = np.empty_like(theta), theta.copy(), np.zeros_like(theta)
        directions.add(k, plan.smoothing_radius * scales, theta, plus)
        if plan.difference.value == "central":
            directions.add(k, -plan.smoothing_radius * scales, theta, minus)
        directions.add(k, scales, direction, direction)
        found = directional_derivatives(
            run(plus, x[rows], y[rows]), run(minus, x[rows], y[rows]), 1, plan.smoothing_radius, plan.difference
        )[0]
        exact = _derivative(model, plan, theta, direction, x[rows], y[rows])
        errors.append(abs(found - exact) / max(abs(exact), 1e-12))
    return float(np.median(errors))


def _random_batch(model: SplitModel, rows: int, generator: np.random.Generator) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    x = generator.standard_normal((rows, *model.input_shape), np.float32)
    return x, generator.integers(0, model.num_classes, rows, np.int64)


def _feeds(
    model: SplitModel, names: tuple[str, ...], x: Float32Array, y: npt.NDArray[np.int64]
) -> tuple[dict[str, npt.NDArray[Any]], tuple[torch.Tensor, torch.Tensor]]:
    weights = {f"client_model.{i}": p.detach().cpu().numpy() for i, p in enumerate(model.front.parameters())}
    weights |= {f"auxiliary_head.{i}": p.detach().cpu().numpy() for i, p in enumerate(model.auxiliary_head.parameters())}
    everything: dict[str, npt.NDArray[Any]] = {"x": x, "y": y, **weights}
    return {name: everything[name] for name in names}, (torch.from_numpy(x), torch.from_numpy(y))


def _arguments(kind: ProgramKind, batch: tuple[torch.Tensor, torch.Tensor], model: SplitModel) -> tuple[Any, ...]:
    front = [p.detach().cpu() for p in model.front.parameters()]
    head = [p.detach().cpu() for p in model.auxiliary_head.parameters()]
    return (batch[0], front) if kind is ProgramKind.FRONT else (*batch, front, head)


def _trained_flat(model: SplitModel, plan: Plan) -> Float32Array:
    front = flat_parameters(model.front)
    return np.concatenate([front, flat_parameters(model.auxiliary_head)]) if plan.trains_head else front


def _loss_runner(
    model: SplitModel, plan: Plan, run: NamedRunner
) -> Callable[[Float32Array, Float32Array, npt.NDArray[np.int64]], Float32Array]:
    spec = model.to_spec()
    front, head = FlatLayout(spec.client_model), FlatLayout(spec.auxiliary_head)
    fixed_head = flat_parameters(model.auxiliary_head)

    def losses(theta: Float32Array, x: Float32Array, y: npt.NDArray[np.int64]) -> Float32Array:
        feeds: dict[str, npt.NDArray[Any]] = {f"client_model.{i}": v for i, v in enumerate(front.views(theta[: front.num_parameters]))}
        if plan.objective is Objective.AUXILIARY:
            head_flat = theta[front.num_parameters :] if plan.trains_head else fixed_head
            feeds |= {f"auxiliary_head.{i}": v for i, v in enumerate(head.views(head_flat))}
        pieces = []
        for start in range(0, len(x), plan.micro_batch):
            rows = slice(start, start + plan.micro_batch)
            if plan.objective is Objective.AUXILIARY:
                pieces.append(run({**feeds, "x": x[rows], "y": y[rows]})[1])
            else:
                with torch.no_grad():
                    z = torch.from_numpy(run({**feeds, "x": x[rows]})[0])
                    pieces.append(model.sample_losses(model.back(z), torch.from_numpy(y[rows])).numpy())
        return np.concatenate(pieces)

    return losses


def _derivative(
    model: SplitModel, plan: Plan, theta: Float32Array, direction: Float32Array, x: Float32Array, y: npt.NDArray[np.int64]
) -> float:
    last = model.auxiliary_head if plan.objective is Objective.AUXILIARY else model.back
    parameters = [*model.front.parameters(), *(model.auxiliary_head.parameters() if plan.trains_head else ())]
    loss = model.sample_losses(last(model.front(torch.from_numpy(x))), torch.from_numpy(y)).mean()
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]).numpy()
    return float(np.dot(gradient.astype(np.float64), direction.astype(np.float64)))
