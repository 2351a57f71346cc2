"""The best linear decoder, in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch

Decoder = Callable[[torch.Tensor], torch.Tensor]
"""Activations [n, k] -> guesses [n, d]."""

PENALTIES = tuple(10.0**power for power in range(-7, 2))
"""Tried in turn, each times the mean square of an activation around its mean."""

_COLUMNS_AT_ONCE = 1 << 13


class RidgeDecoder:
    """x = mean_x + (z - mean_z) W with W = argmin sum |x - mean_x - (z - mean_z) W|^2 + n penalty |W|^2.

    W = (Z^T Z + n penalty I)^-1 Z^T X; with more activations than rows Z^T (Z Z^T + n penalty I)^-1 X, which is the same. Activations that arrive with
    Gaussian noise of variance s^2 add s^2 to the penalty and change nothing else, if rows are drawn for ever: so rows are taken without it here.
    """

    def __init__(self, z: torch.Tensor, x: torch.Tensor, penalty: float) -> None:
        """Fit rows z [n, k] and x [n, d]."""
        self._mean_z, self._mean_x = z.mean(0), x.double().mean(0)
        rows, aims = z - self._mean_z, x.double() - self._mean_x
        if z.shape[1] <= len(z):
            wide = rows.double()
            self._support, self._weights = None, _solved(wide.T @ wide, len(z) * penalty, wide.T @ aims)
        else:
            self._support, self._weights = rows, _solved(_products(rows, rows), len(z) * penalty, aims)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Return guesses [n, d] float32."""
        rows = z - self._mean_z
        features = rows.double() if self._support is None else _products(rows, self._support)
        return (features @ self._weights + self._mean_x).float()


def best_ridge(z: torch.Tensor, x: torch.Tensor, *, held_z: torch.Tensor, held_x: torch.Tensor) -> RidgeDecoder:
    """Return the decoder of the penalty that does best on held-out rows, whose activations are as they arrive."""
    scale = max(float((z - z.mean(0)).double().square().mean()), 1e-12)
    decoders = (RidgeDecoder(z, x, penalty * scale) for penalty in PENALTIES)
    return min(decoders, key=lambda decoder: float((decoder(held_z) - held_x).square().mean()))


def _solved(gram: torch.Tensor, diagonal: float, right: torch.Tensor) -> torch.Tensor:
    weights: torch.Tensor = torch.linalg.solve(gram + diagonal * torch.eye(len(gram), dtype=gram.dtype), right)
    return weights


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a b^T in float64, some columns at a time: rows of hundreds of thousands of numbers would be copied whole otherwise."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    for start in range(0, a.shape[1], _COLUMNS_AT_ONCE):
        columns = slice(start, start + _COLUMNS_AT_ONCE)
        total += a[:, columns].double() @ b[:, columns].double().T
    return total
