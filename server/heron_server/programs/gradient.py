"""Backward rules: a gradient as one graph of ordinary forward operations, so that it exports to standard ONNX and runs fast there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from heron_common.errors import ProgramError
from heron_server.programs.batch_norm_gradient import batch_norm, batch_norm_backward
from heron_server.programs.convolution_gradient import convolution_backward
from heron_server.programs.narrow_reads import narrow

aten = torch.ops.aten

OptionalTensors = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def with_backward_rules(module: nn.Module, arguments: tuple[object, ...]) -> nn.Module:
    """Return the same function, its gradients written out in operations that ONNX has, and narrow weights read before they are widened.

    Shapes are those of `arguments`.

    Raises:
        ProgramError: the model differentiates an operation that has no backward rule.

    """
    # Attention is differentiated as the matrix products it consists of: its fused kernels have no parts that ONNX could name.
    with sdpa_kernel(SDPBackend.MATH):
        graph = make_fx(module, decomposition_table=_decompositions())(*arguments)
    narrow(graph)
    missing = sorted({str(node.target) for node in graph.graph.nodes if "backward" in str(node.target)})
    if missing:
        raise ProgramError(f"there is no backward rule for {', '.join(missing)}: use a model of other operations")
    return _Traced(graph)


def traced(module: nn.Module, arguments: tuple[object, ...]) -> nn.Module:
    """Return the same function as one graph of torch's operations: what is mapped over weights has become grouped and batched ones."""
    return _Traced(make_fx(module)(*arguments))


class _Traced(nn.Module):
    """A traced function as a module of its own: torch.export takes no graph module whose arguments are lists."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self._traced = traced

    def forward(self, *arguments: object) -> Any:
        return self._traced(*arguments)


def group_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    batch: int,
    channels: int,
    places: int,
    groups: int,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (x - mean) / sqrt(variance + epsilon) * weight + bias over each group, with mean and inverse deviation [B, groups]."""
    mean = x.reshape(batch * groups, -1).mean(-1).reshape(batch, groups)
    centred = _centred(x, mean)
    scale = torch.rsqrt((centred * centred).mean(-1) + epsilon).reshape(batch, groups)
    factors = scale.reshape(batch, groups, 1) * (torch.ones(channels) if weight is None else weight).reshape(1, groups, -1)
    offsets = (torch.zeros(channels) if bias is None else bias).repeat(batch)
    y = _affine(centred.reshape(batch * channels, -1), factors.reshape(-1), offsets)
    return y.reshape(x.shape), mean, scale


def group_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor | None,
    batch: int,
    channels: int,
    places: int,
    groups: int,
    output_mask: Sequence[bool],
) -> OptionalTensors:
    """Return the gradients of x, weight and bias; with n the normalised x and g = weight * gradient: scale * (g - mean(g) - n mean(g n))."""
    scale = scale.reshape(batch, groups, 1)
    centred = _centred(x, mean)
    gradient = gradient.reshape(batch, channels, -1)
    sums = gradient.sum(-1)
    products = ((gradient * centred.reshape(batch, channels, -1)).sum(-1).reshape(batch, groups, -1) * scale).reshape(batch, channels)
    for_x = None
    if output_mask[0]:
        weights = (torch.ones(channels) if weight is None else weight).reshape(1, groups, -1)
        share = scale / (channels // groups * places)
        offsets = (sums.reshape(batch, groups, -1) * weights).sum(-1, keepdim=True) * -share
        factors = (products.reshape(batch, groups, -1) * weights).sum(-1, keepdim=True) * (-share * scale)
        own = _affine(gradient.reshape(batch * channels, -1), (weights * scale).reshape(-1), torch.zeros(batch * channels))
        common = _affine(centred, factors.reshape(-1), offsets.reshape(-1))
        for_x = own.reshape(x.shape) + common.reshape(x.shape)
    return for_x, products.sum(0) if output_mask[1] else None, sums.sum(0) if output_mask[2] else None


def _centred(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return x - mean by groups, [B * groups, N]; one expression for both passes, so that the exporter computes it once."""
    return x.reshape(mean.numel(), -1) - mean.reshape(-1, 1)


def _affine(x: torch.Tensor, factors: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return factors x + offsets by rows, [R, N]; as an inference-mode batch normalisation, for which ONNX Runtime needs one pass, not two."""
    zeros, ones = torch.zeros(len(x)), torch.ones(len(x))
    return nn.functional.batch_norm(x.unsqueeze(0), zeros, ones, factors, offsets, training=False, eps=0.0).squeeze(0)


def threshold_backward(gradient: torch.Tensor, x: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return the gradient where x > threshold, else zero; a product, since ONNX Runtime's Where is three passes."""
    return gradient * (x > threshold).to(gradient.dtype)


def max_pool_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    """Return each window's gradient at the place of its maximum; places of overlapping windows add up."""
    planes = x.shape[:-2]
    flat = torch.zeros_like(x).reshape(*planes, -1)
    return flat.scatter_add(-1, indices.reshape(*planes, -1), gradient.reshape(*planes, -1)).reshape(x.shape)


def average_pool_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    """Return A_h^T gradient A_w, where A [places, size] holds the weights of each window along one dimension.

    Raises:
        ProgramError: the pooling divides by a number of its own.

    """
    if divisor_override is not None:
        raise ProgramError("an average pooling with a divisor of its own has no backward rule: leave divisor_override out")
    kernel, padding = ([*v] * (2 if len(v) == 1 else 1) for v in (kernel, padding))
    stride = [*stride] * (2 if len(stride) == 1 else 1) or kernel

    def window(i: int, place: int) -> tuple[int, int, int]:
        start = place * stride[i] - padding[i]
        stop = min(start + kernel[i], x.shape[i - 2] + padding[i])
        inside = max(start, 0), min(stop, x.shape[i - 2])
        return *inside, stop - start if count_include_pad else inside[1] - inside[0]

    return _spread(gradient, x, window)


def adaptive_average_pool_backward(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return A_h^T gradient A_w, where window p along a dimension runs from floor(p size / places) to ceil((p + 1) size / places)."""

    def window(i: int, place: int) -> tuple[int, int, int]:
        size, places = x.shape[i - 2], gradient.shape[i - 2]
        start, stop = place * size // places, -(-(place + 1) * size // places)
        return start, stop, stop - start

    return _spread(gradient, x, window)


def _spread(gradient: torch.Tensor, x: torch.Tensor, window: Callable[[int, int], tuple[int, int, int]]) -> torch.Tensor:
    """Spread each window's gradient evenly; `window(i, place)` is its start, stop and divisor along dimension i."""
    matrices = []
    for i in range(2):
        matrix = [[0.0] * x.shape[i - 2] for _ in range(gradient.shape[i - 2])]
        for place, row in enumerate(matrix):
            start, stop, divisor = window(i, place)
            row[start:stop] = [1.0 / divisor] * (stop - start)
        matrices.append(torch.tensor(matrix))
    return matrices[0].t() @ gradient @ matrices[1]


def embedding_backward(
    gradient: torch.Tensor, indices: torch.Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> torch.Tensor:
    """Return the sum of the gradients of each row's uses, [num_weights, width].

    Raises:
        ProgramError: gradients are scaled by frequency.

    """
    if scale_grad_by_freq:
        raise ProgramError("an embedding that scales gradients by frequency has no backward rule: leave scale_grad_by_freq out")
    flat, width = indices.reshape(-1, 1), gradient.shape[-1]
    rows = gradient.reshape(-1, width)
    if padding_idx >= 0:
        rows = rows * (flat != padding_idx).to(rows.dtype)
    return torch.zeros(num_weights, width).scatter_add(0, flat.expand(-1, width), rows)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        **core_aten_decompositions(),
        aten.convolution_backward.default: convolution_backward,
        aten.native_group_norm.default: group_norm,
        aten.native_group_norm_backward.default: group_norm_backward,
        aten.native_batch_norm.default: batch_norm,
        aten.native_batch_norm_backward.default: batch_norm_backward,
        aten.threshold_backward.default: threshold_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
        aten.avg_pool2d_backward.default: average_pool_backward,
        aten._adaptive_avg_pool2d_backward.default: adaptive_average_pool_backward,
        aten.embedding_dense_backward.default: embedding_backward,
    }
