"""Batch normalisation by the batch's own statistics, and its gradient, in operations that ONNX has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch._decomp.decompositions import native_batch_norm_backward as decomposed


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_variance: torch.Tensor | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (x - mean) / sqrt(variance + epsilon) * weight + bias by the batch's own mean and variance of each channel, and mean and inverse deviation.

    Running statistics move in place, the variance by the unbiased one. ONNX Runtime's own training mode is not part of its inference builds. Without
    `training` the operation is one that ONNX has.
    """
    if not training:
        return NotImplemented  # type: ignore[no-any-return]
    channels, count = x.shape[1], x.numel() // x.shape[1]
    mean = _channel_sums(x) / count
    centred = x - _by_channel(mean, x)
    variance = _channel_sums(centred * centred) / count
    scale = torch.rsqrt(variance + epsilon)
    factors = scale if weight is None else scale * weight
    y = _affine_channels(centred, factors, torch.zeros(channels) if bias is None else bias)
    if running_mean is not None and running_variance is not None:
        running_mean.copy_(running_mean * (1.0 - momentum) + mean * momentum)
        running_variance.copy_(running_variance * (1.0 - momentum) + variance * (momentum * count / (count - 1)))
    return y, mean, scale


def batch_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_variance: torch.Tensor | None,
    mean: torch.Tensor,
    scale: torch.Tensor,
    training: bool,
    epsilon: float,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of x, weight and bias; with n the normalised x: scale * weight * (gradient - mean(gradient) - n mean(gradient n))."""
    if not training:
        return decomposed(gradient, x, weight, running_mean, running_variance, mean, scale, training, epsilon, list(output_mask))
    count = x.numel() // x.shape[1]
    centred = x - _by_channel(mean, x)
    sums = _channel_sums(gradient)
    products = _channel_sums(gradient * centred) * scale
    for_x = None
    if output_mask[0]:
        factors = scale if weight is None else scale * weight
        own = _affine_channels(gradient, factors, factors * sums / -count)
        for_x = own + _affine_channels(centred, factors * scale * products / -count, torch.zeros(len(sums)))
    return for_x, products if output_mask[1] else None, sums if output_mask[2] else None


def _channel_sums(x: torch.Tensor) -> torch.Tensor:
    """Return the sum over all but dimension 1, first over places: contiguous sums are fast, and short ones round less."""
    return x.reshape(*x.shape[:2], -1).sum(2).sum(0)


def _by_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def _affine_channels(x: torch.Tensor, factors: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return factors x + offsets by channels, as an inference-mode batch normalisation, for which ONNX Runtime needs one pass, not two."""
    zeros, ones = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    return nn.functional.batch_norm(x, zeros, ones, factors, offsets, training=False, eps=0.0)
