"""How strongly activations follow a sample: the trace of the Fisher information that noisy activations have of it."""

from __future__ import annotations

from collections.abc import Callable

import torch

_PROBES = 16


def mean_sensitivity(front: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, *, probes: int = _PROBES) -> float:
    """Return the mean over rows x [n, *shape] of tr(J^T J) / d, J the front's Jacobian and d the numbers of a sample.

    Hutchinson's estimate: E |J^T u|^2 = tr(J J^T) for random signs u. With Gaussian noise of standard deviation s on activations the diagonal Fisher
    information leakage is this divided by s^2, and no *unbiased* attacker has a mean squared error below its reciprocal (Maeng et al. 2023, arXiv 2305.04146).
    """
    generator, total = torch.Generator().manual_seed(0), 0.0
    for _ in range(probes):
        samples = x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            z = front(samples)
            signs = torch.randint(0, 2, z.shape, generator=generator).to(z.dtype) * 2 - 1
            (pulled,) = torch.autograd.grad((z * signs).sum(), samples)
        total += float(pulled.double().square().flatten(1).mean(1).mean())
    return total / probes
