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
from onnx import TensorProto
from torch import nn

from heron_common.assignment import ProgramKind
from heron_common.directions import Directions, derive_seed
from heron_common.errors import ParityError, ProgramError
from heron_common.ids import RoundReference
from heron_common.layout import FlatLayout
from heron_common.plan import Objective, Plan
from heron_common.tensors import Float32Array, Float64Array
from heron_common.zeroth_order import FiniteDifference, directional_derivatives
from heron_server.models.split_model import SplitModel, flat_parameters, predict, trained_parameters
from heron_server.programs.compile import ClientPart, CompiledFunction, compile_function
from heron_server.programs.cost import client_cost

TOLERANCE = 1e-4
"""For losses, activations and gradients of transformers, relative to the largest value of the output (or 1e-3)."""

CONVOLUTION_GRADIENT_TOLERANCE = 2e-5
"""For gradients of convolutional models, relative to the largest gradient of any tensor (or 1e-3). Over 25 seeds of four fronts the rounding of float32 alone
reached 7e-6, where a first convolution sums over 12,544 positions; a wrong rule is off by percents."""

BY_BATCH_GRADIENT_TOLERANCE = 5e-3
"""The same for models that normalise by whole batches, where no draw of samples is within the other: among the millions of values before a batch's ReLUs
some are so near zero that rounding decides their sign, and whole terms come or go. On a ResNet front with 16 samples torch's own gradients in float32 are
1.4e-3 from those in float64 in such a draw and 2e-6 in others, and with tanh for ReLU 6e-6 in all."""

NUM_DRAWS = 3
"""Draws of samples in which a gradient may be within its tolerance: a sign that rounding decides is bad luck, a wrong rule is wrong in all."""

DIFFERENCE_TOLERANCE = 0.05
"""Median relative error of the finite difference; a finite difference worse than this points elsewhere than the gradient."""

NUM_DIRECTIONS = 32

COSTLY_FLOPS = 10**11
"""Beyond so many FLOPs of forwards the directions share one group of samples, and so its gradient: a ResNet front's 256 samples would take minutes."""

NUM_COSTLY_DIRECTIONS = 8

GRADIENT_ROWS = 32
"""Samples of one backward pass of the gate: a whole group's activations may be a gigabyte."""

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
    outputs = [output.name for output in session.get_outputs()]

    def run(feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        values = {name: _ort_value(array) for name, array in feeds.items()}
        return [value.numpy() for value in session.run_with_ort_values(outputs, values)]

    return run


def _ort_value(array: npt.NDArray[Any]) -> Any:
    """Return an array as ONNX Runtime takes it; numpy has no bfloat16, whose bits stand in 16-bit integers here."""
    if array.dtype == np.uint16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def check_outputs(model: SplitModel, kind: ProgramKind, program: bytes, micro_batch: int, seed: int) -> float:
    """Compare every output with torch, gradients with autograd, on the model's weights; return the largest max|a-b| / max(|b|max, 1e-3).

    Raises:
        ParityError: an output exceeds its tolerance, a gradient in every draw of samples.

    """
    function, run = compile_function(model, kind, micro_batch), load_runner(program)
    last = BY_BATCH_GRADIENT_TOLERANCE if model.batch_statistics else CONVOLUTION_GRADIENT_TOLERANCE
    for draw in range(NUM_DRAWS):
        errors = _output_errors(function, model, run, micro_batch, seed + draw)
        convolutional = CONVOLUTION_GRADIENT_TOLERANCE if draw < NUM_DRAWS - 1 else last
        limits = {n: convolutional if n.startswith("gradients.") and _is_convolutional(model) else TOLERANCE for n in errors}
        exceeding = [name for name, error in errors.items() if not error <= limits[name]]
        if not exceeding:
            return max(errors.values())
        if not all(name.startswith("gradients.") for name in exceeding):
            break
    name = exceeding[0]
    raise ParityError(
        f"output {name!r} of the {kind.value} program differs from the model by {errors[name]:.2e} (limit {limits[name]}): it is not published"
    )


def _output_errors(function: CompiledFunction, model: SplitModel, run: NamedRunner, micro_batch: int, seed: int) -> dict[str, float]:
    """Return max|a-b| / max(|b|max, 1e-3) of every output on one draw of samples."""
    samples = _random_samples(model, micro_batch, seed)
    data = [samples[name] for name in function.input_names if name in samples]
    with torch.no_grad():
        expected = function.module(*map(torch.from_numpy, data), *function.arguments[len(data) :])
    want = {
        name: tensor.numpy()
        for name, tensor in zip(function.output_names, expected if isinstance(expected, tuple) else (expected,), strict=True)
    }
    feeds = {**samples, **_weights(model), **_base(model), **_statistics(model)}
    got = run({name: feeds[name] for name in function.input_names})
    return {name: float(np.abs(f - want[name]).max()) / size for (name, size), f in zip(_sizes(want).items(), got, strict=True)}


def check_difference(model: SplitModel, plan: Plan, program: bytes, scales: Float64Array, seed: int) -> float:
    """Compare the plan's finite difference with autograd's directional derivative; return the median relative error of 32 directions.

    Raises:
        ParityError: it exceeds DIFFERENCE_TOLERANCE; the message names a smoothing radius that would pass.

    """
    error = difference_error(model, plan, program, scales, seed)
    if error <= DIFFERENCE_TOLERANCE:
        return error
    radius = fitting_radius(model, plan, program, scales, seed)
    raise ParityError(
        f"with smoothing_radius {plan.smoothing_radius:g} the finite difference misses the derivative by {error:.1%} "
        f"(median; limit {DIFFERENCE_TOLERANCE:.0%}): use smoothing_radius {radius:g}"
    )


def fitting_radius(model: SplitModel, plan: Plan, program: bytes, scales: Float64Array, seed: int) -> float:
    """Return the radius nearest to the plan's, by powers of two, whose finite difference is within DIFFERENCE_TOLERANCE of the derivative.

    A curved loss wants a smaller one; where weights hardly matter, as an adapter's before it is trained, a larger one lifts the difference out of rounding.

    Raises:
        ParityError: none is.

    """

    def error(exponent: int) -> float:
        radius = plan.smoothing_radius * 2.0**exponent
        return difference_error(model, dataclasses.replace(plan, smoothing_radius=radius), program, scales, seed)

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


def difference_error(model: SplitModel, plan: Plan, program: bytes, scales: Float64Array, seed: int) -> float:
    """Return the median over directions of |finite difference - derivative| / |derivative|, on random samples.

    Each direction has a group of samples of its own, or where that is costly all have the same one, or as much of it as the budget allows: of fewer
    samples a difference is no truer.
    """
    forward_flops, group_size = client_cost(model, plan.needs_head).forward_flops, plan.group_size
    costly = NUM_DIRECTIONS * group_size * forward_flops > COSTLY_FLOPS
    num_directions, num_groups = (NUM_COSTLY_DIRECTIONS, 1) if costly else (NUM_DIRECTIONS, NUM_DIRECTIONS)
    if costly:
        affordable = COSTLY_FLOPS // (NUM_COSTLY_DIRECTIONS * forward_flops) // plan.micro_batch * plan.micro_batch
        group_size = min(group_size, max(affordable, plan.micro_batch))
    generator = np.random.Generator(np.random.Philox(key=seed))
    x, y = model.random_batch(num_groups * group_size, generator)
    layout = FlatLayout(model.to_spec().client_model + (model.to_spec().auxiliary_head if plan.trains_head else ()))
    directions = Directions(derive_seed(seed, "parity", RoundReference(0, 0), "parity", 0), plan.distribution, layout)
    theta = _trained_flat(model, plan)
    run = _loss_runner(model, plan, load_runner(program))
    errors = []
    for k in range(num_directions):
        if k < num_groups:
            rows = slice(k * group_size, (k + 1) * group_size)
            base = run(theta, x[rows], y[rows]) if plan.difference is FiniteDifference.FORWARD else None
            gradient = _gradient(model, plan, x[rows], y[rows])
        plus, minus, direction = np.empty_like(theta), np.empty_like(theta), np.zeros_like(theta)
        directions.add(k, plan.smoothing_radius * scales, theta, plus)
        directions.add(k, -plan.smoothing_radius * scales, theta, minus)
        directions.add(k, scales, direction, direction)
        other = run(minus, x[rows], y[rows]) if base is None else base
        found = directional_derivatives(run(plus, x[rows], y[rows]), other, 1, plan.smoothing_radius, plan.difference)[0]
        exact = float(np.dot(gradient, direction.astype(np.float64)))
        errors.append(abs(found - exact) / max(abs(exact), 1e-12))
    return float(np.median(errors))


def _random_samples(model: SplitModel, rows: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    x, y = model.random_batch(rows, generator)
    return {"x": x, "y": y, "cut_gradient": generator.standard_normal((rows, *model.to_spec().cut.shape), np.float32)}


def _sizes(want: dict[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Return what each output's error is measured against: its largest value, or where terms may cancel what they are made of.

    A gradient that is zero in theory, such as that of a bias before a norm, is rounding on both sides, and a small one that sums over many
    positions is mostly that: the largest gradient, which sets the length of the step. An inner product with a normal lambda may be near zero
    by chance: at least the norm of the activations, its deviation.
    """
    sizes = {name: max(float(np.abs(array).max()), 1e-3) for name, array in want.items()}
    largest = max((size for name, size in sizes.items() if name.startswith("gradients.")), default=0.0)
    if "inner_products" in sizes:
        norms = np.linalg.norm(want["activations"].reshape(len(want["activations"]), -1), axis=1)
        sizes["inner_products"] = max(sizes["inner_products"], float(norms.max()))
    return {name: max(size, largest) if name.startswith("gradients.") else size for name, size in sizes.items()}


def _weights(model: SplitModel) -> dict[str, npt.NDArray[Any]]:
    parts = {"client_model": model.front, "auxiliary_head": model.auxiliary_head}
    return {f"{name}.{i}": p.detach().cpu().numpy() for name, part in parts.items() for i, (_, p) in enumerate(trained_parameters(part))}


def _base(model: SplitModel) -> dict[str, npt.NDArray[Any]]:
    inputs = ClientPart(model, with_head=True).base_inputs()
    return {name: (stored.view(torch.uint16) if stored.dtype is torch.bfloat16 else stored).numpy() for name, stored in inputs}


def _statistics(model: SplitModel) -> dict[str, npt.NDArray[Any]]:
    return {f"statistics.{i}": value.detach().cpu().numpy() for i, value in enumerate(model.statistics.values())}


def _is_convolutional(model: SplitModel) -> bool:
    kinds = {type(module) for part in (model.front, model.auxiliary_head) for module in part.modules()}
    return any(issubclass(k, nn.modules.conv._ConvNd) for k in kinds) and not kinds & {nn.LayerNorm, nn.Embedding, nn.MultiheadAttention}


def _trained_flat(model: SplitModel, plan: Plan) -> Float32Array:
    front = flat_parameters(model.front)
    return np.concatenate([front, flat_parameters(model.auxiliary_head)]) if plan.trains_head else front


def _loss_runner(
    model: SplitModel, plan: Plan, run: NamedRunner
) -> Callable[[Float32Array, npt.NDArray[Any], npt.NDArray[Any]], Float32Array]:
    spec = model.to_spec()
    front, head = FlatLayout(spec.client_model), FlatLayout(spec.auxiliary_head)
    fixed_head = flat_parameters(model.auxiliary_head)

    with_head = plan.objective is Objective.AUXILIARY
    part = ClientPart(model, with_head)
    base = {name: array for name, array in _base(model).items() if name in dict(part.base_inputs())}
    if plan.objective is not Objective.CUT_GRADIENT:
        base |= {f"statistics.{i}": value.numpy() for i, value in enumerate(part.statistics.values())}

    def losses(theta: Float32Array, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Float32Array:
        feeds: dict[str, npt.NDArray[Any]] = base | {
            f"client_model.{i}": v for i, v in enumerate(front.views(theta[: front.num_parameters]))
        }
        if plan.objective is Objective.AUXILIARY:
            head_flat = theta[front.num_parameters :] if plan.trains_head else fixed_head
            feeds |= {f"auxiliary_head.{i}": v for i, v in enumerate(head.views(head_flat))}
        pieces = []
        for start in range(0, len(x), plan.micro_batch):
            rows = slice(start, start + plan.micro_batch)
            if plan.objective is Objective.AUXILIARY:
                pieces.append(run({**feeds, "x": x[rows], "y": y[rows]})[1])
            elif plan.objective is Objective.CUT_GRADIENT:
                cut_gradient = cut_gradients(model, x[rows], y[rows])
                pieces.append(run({**feeds, "x": x[rows], "cut_gradient": cut_gradient})[1])
            else:
                with torch.no_grad():
                    z = torch.from_numpy(run({**feeds, "x": x[rows]})[0])
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


def _gradient(model: SplitModel, plan: Plan, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Float64Array:
    """Return the gradient of the group's mean loss by autograd, flat."""
    parts = (model.front, model.auxiliary_head) if plan.trains_head else (model.front,)
    parameters = [parameter for part in parts for _, parameter in trained_parameters(part)]
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
