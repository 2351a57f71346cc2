"""The gate before publishing: a program equals its model on the run's own weights, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from heron_common.errors import ParityError, ProgramError
from heron_common.specification.model_spec import WEIGHTS_BY_DIRECTION, ProgramKind
from heron_server.models.split_model import SplitModel, trained_parameters
from heron_server.programs.client_part import ClientPart
from heron_server.programs.compile import ByDirection, CompiledFunction, compile_function

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
        # Few models need it, and it takes a twentieth of a small server's start.
        from onnx import TensorProto

        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def check_outputs(model: SplitModel, kind: ProgramKind, *, program: bytes, micro_batch: int, seed: int, directions: int = 1) -> float:
    """Compare every output with torch, gradients with autograd, on the model's weights; return the largest max|a-b| / max(|b|max, 1e-3).

    A program that takes several directions is compared group by group, each at perturbed weights of its own, with the model run on that group alone.

    Raises:
        ParityError: an output exceeds its tolerance, a gradient in every draw of samples.

    """
    function, run = compile_function(model, kind, micro_batch=micro_batch, directions=directions), load_runner(program)
    last = BY_BATCH_GRADIENT_TOLERANCE if model.batch_statistics else CONVOLUTION_GRADIENT_TOLERANCE
    for draw in range(NUM_DRAWS):
        errors = _output_errors(function, model, run=run, micro_batch=micro_batch, seed=seed + draw)
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


def _output_errors(function: CompiledFunction, model: SplitModel, *, run: NamedRunner, micro_batch: int, seed: int) -> dict[str, float]:
    """Return max|a-b| / max(|b|max, 1e-3) of every output on one draw of samples."""
    samples = _random_samples(model, micro_batch, seed)
    data = [torch.from_numpy(samples[name]) for name in function.input_names if name in samples]
    with torch.no_grad():
        if isinstance(function.module, ByDirection):
            samples[WEIGHTS_BY_DIRECTION] = _perturbed_weights(function, seed)
            expected = _group_by_group(
                function.module, data, weights=torch.from_numpy(samples[WEIGHTS_BY_DIRECTION]), base=function.arguments[-1]
            )
        else:
            expected = function.module(*data, *function.arguments[len(data) :])
    want = {
        name: tensor.numpy()
        for name, tensor in zip(function.output_names, expected if isinstance(expected, tuple) else (expected,), strict=True)
    }
    feeds = {**samples, **_weights(model), **base_feeds(model), **statistics_feeds(model)}
    got = run({name: feeds[name] for name in function.input_names})
    return {name: float(np.abs(f - want[name]).max()) / size for (name, size), f in zip(_sizes(want).items(), got, strict=True)}


def _perturbed_weights(function: CompiledFunction, seed: int) -> npt.NDArray[Any]:
    """Return the model's own weights, moved by a tenth of their scale to another place for each direction."""
    place = function.input_names.index(WEIGHTS_BY_DIRECTION)
    weights = torch.as_tensor(function.arguments[place]).numpy()
    noise = np.random.Generator(np.random.Philox(key=seed)).standard_normal(weights.shape, np.float32)
    moved: npt.NDArray[Any] = weights + noise * np.float32(0.1 * np.sqrt(np.mean(np.square(weights))))
    return moved


def _group_by_group(module: ByDirection, data: list[torch.Tensor], *, weights: torch.Tensor, base: Any) -> tuple[torch.Tensor, ...]:
    groups = [torch.tensor_split(samples, len(weights)) for samples in data]
    found = [module.of_group(row, [group[i] for group in groups], base) for i, row in enumerate(weights)]
    return tuple(torch.cat(outputs) for outputs in zip(*found, strict=True))


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


def base_feeds(model: SplitModel) -> dict[str, npt.NDArray[Any]]:
    """Return what is stored of the frozen tensors of front and head, by program input."""
    inputs = ClientPart(model, with_head=True).base_inputs()
    return {name: (stored.view(torch.uint16) if stored.dtype is torch.bfloat16 else stored).numpy() for name, stored in inputs}


def statistics_feeds(model: SplitModel) -> dict[str, npt.NDArray[Any]]:
    """Return the running statistics of front and head, by program input."""
    return {f"statistics.{i}": value.detach().cpu().numpy() for i, value in enumerate(model.statistics.values())}


def _is_convolutional(model: SplitModel) -> bool:
    kinds = {type(module) for part in (model.front, model.auxiliary_head) for module in part.modules()}
    return any(issubclass(k, nn.modules.conv._ConvNd) for k in kinds) and not kinds & {nn.LayerNorm, nn.Embedding, nn.MultiheadAttention}
