"""White-box attack: the likeliest sample, by what the attacker knows of a decoder's errors, whose activations are those that arrived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Front = Callable[[torch.Tensor], torch.Tensor]
"""Samples [n, *shape] -> activations, as clipped by the defence; gradients pass."""

PRIOR_WEIGHTS = (10.0, 1.0, 0.3, 0.1, 1e-2, 1e-3, 1e-4, 1e-6)
"""Tried in turn on rows of the attacker's own: how much the prior counts beside the fit of activations. The first all but keeps the decoder's guess."""

STEPS = 250
_RATE = 0.1
_COMPONENTS = 256
_TRIED_ROWS = 16
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ErrorPrior:
    """Where a sample lies around a decoder's guess: guess + a basis + deviation r with standard normal a [n, components] and r [n, d].

    Attributes:
        basis: [components, d], principal components of the decoder's errors, as long as the standard deviations along them.
        deviation: of each number that the components do not explain.

    """

    basis: torch.Tensor
    deviation: float

    @classmethod
    def of(cls, errors: torch.Tensor, held: torch.Tensor) -> ErrorPrior:
        """Fit errors [n, d] on rows that the decoder was fitted to; how large errors are is measured on rows that it has not seen, [m, d]."""
        seen, unseen = (max(float(some.square().mean().sqrt()), 1e-6) for some in (errors, held))
        errors = errors * (unseen / seen)
        _, lengths, directions = torch.linalg.svd(errors, full_matrices=False)
        kept = min(_COMPONENTS, int((lengths > 1e-6 * lengths[0]).sum()))
        directions = directions[:kept]
        rest = float((held - held @ directions.T @ directions).square().mean().sqrt())
        return cls(directions * (lengths[:kept, None] / len(errors) ** 0.5), max(rest, 1e-2 * unseen))

    def samples(self, guess: torch.Tensor, a: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        """Return the samples, within the range of the data, [n, d] in [0, 1]."""
        return (guess + a @ self.basis + self.deviation * r).clamp(0, 1)


def invert(front: Front, z: torch.Tensor, *, guess: torch.Tensor, prior: ErrorPrior, weight: float, scale: float) -> torch.Tensor:
    """Return argmin over x of mean (front(x) - z)^2 / scale + weight (|a|^2 + |r|^2) / d for each row, by Adam; `guess` [n, *shape] is a decoder's."""
    pieces = zip(torch.split(z, _ROWS_AT_ONCE), torch.split(guess, _ROWS_AT_ONCE), strict=True)
    return torch.cat([_descend(front, rows, guess=some, prior=prior, weight=weight, scale=scale) for rows, some in pieces])


def best_weight(front: Front, z: torch.Tensor, x: torch.Tensor, *, guess: torch.Tensor, prior: ErrorPrior, scale: float) -> float:
    """Return the weight of the prior that does best on rows that the attacker knows, x [n, *shape]; the first few of them are tried."""
    z, x, guess = z[:_TRIED_ROWS], x[:_TRIED_ROWS], guess[:_TRIED_ROWS]

    def error(weight: float) -> float:
        return float((invert(front, z, guess=guess, prior=prior, weight=weight, scale=scale) - x).square().mean())

    return min(PRIOR_WEIGHTS, key=error)


def _descend(front: Front, z: torch.Tensor, *, guess: torch.Tensor, prior: ErrorPrior, weight: float, scale: float) -> torch.Tensor:
    flat = guess.flatten(1)
    a, r = torch.zeros(len(z), len(prior.basis), requires_grad=True), torch.zeros_like(flat, requires_grad=True)
    optimiser = torch.optim.Adam([a, r], _RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = _RATE * (1 - 0.95 * step / STEPS)
            fit = (front(prior.samples(flat, a, r).reshape(guess.shape)) - z).square().flatten(1).mean(1) / scale
            likelihood = (a.square().sum(1) + r.square().sum(1)) / r.shape[1]
            a.grad, r.grad = torch.autograd.grad((fit + weight * likelihood).sum(), [a, r])
            optimiser.step()
    return prior.samples(flat, a, r).detach().reshape(guess.shape)
