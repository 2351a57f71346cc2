"""How near a reconstruction is, and how much two sets of rows depend on each other: pure functions of tensors."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch.nn.functional import avg_pool2d

LEAST_ERROR = 1e-12
"""A mean squared error below counts as this one: an exact reconstruction has no finite PSNR."""

_LARGEST_WINDOW = 7


@dataclass(frozen=True)
class Score:
    """How near reconstructions are: mean squared error in units of the data's range, PSNR in dB, SSIM of images (None of other samples)."""

    mse: float
    _: KW_ONLY
    psnr: float
    ssim: float | None


def score(x: torch.Tensor, guess: torch.Tensor) -> Score:
    """Compare reconstructions with samples, both [n, *shape] in units of the data's range."""
    mse = float((x - guess).double().square().mean())
    psnr = -10 * math.log10(max(mse, LEAST_ERROR))
    return Score(mse, psnr=psnr, ssim=structural_similarity(x, guess) if is_image(tuple(x.shape[1:])) else None)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a sample is an image: one channel or three, at least three pixels each way."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 3


def structural_similarity(x: torch.Tensor, guess: torch.Tensor) -> float:
    """Return the mean SSIM of images [n, c, h, w] over square windows, all pixels of which weigh the same.

    SSIM = (2 m_x m_g + c1)(2 s_xg + c2) / ((m_x^2 + m_g^2 + c1)(s_x^2 + s_g^2 + c2)), c1 = 0.01^2, c2 = 0.03^2, with means m and population
    (co)variances s of a window; 7 pixels wide, in small images the largest odd number that is at most half a side, 3 at least. Wang et al. 2004.
    """
    half = min(x.shape[-2:]) // 2
    window = min(_LARGEST_WINDOW, max(3, half - 1 + half % 2))
    x, guess = x.double(), guess.double()

    def mean(values: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(values, window, 1)

    mean_x, mean_guess = mean(x), mean(guess)
    variance_x, variance_guess = mean(x * x) - mean_x**2, mean(guess * guess) - mean_guess**2
    covariance = mean(x * guess) - mean_x * mean_guess
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_x * mean_guess + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_guess**2 + c1) * (variance_x + variance_guess + c2)
    return float((above / below).mean())


def distance_correlation(x: torch.Tensor, z: torch.Tensor) -> float:
    """Return the distance correlation of rows of x and z, [n, ...] each, in [0, 1]; 0 if either is constant.

    sqrt(mean(A B) / sqrt(mean(A^2) mean(B^2))), A and B the doubly centred Euclidean distances between rows: the V-statistic of Székely et al. 2007, which
    few rows bias upwards.
    """
    a, b = _centred_distances(x), _centred_distances(z)
    below = float((a * a).mean() * (b * b).mean())
    return math.sqrt(max(0.0, float((a * b).mean())) / math.sqrt(below)) if below > 0 else 0.0


def _centred_distances(rows: torch.Tensor) -> torch.Tensor:
    flat = rows.flatten(1).double()
    # Products of matrices would lose the small distances to rounding.
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()
