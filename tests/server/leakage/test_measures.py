"""Errors and dependences against naive second implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from heron_server.leakage.measures import distance_correlation, is_image, score, structural_similarity


def naive_ssim(x: np.ndarray, y: np.ndarray, window: int) -> float:
    """One window after another, by numpy's own variances."""
    values = []
    for image, other in zip(x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]), strict=True):
        for top in range(image.shape[0] - window + 1):
            for left in range(image.shape[1] - window + 1):
                a = image[top : top + window, left : left + window].ravel()
                b = other[top : top + window, left : left + window].ravel()
                covariance = ((a - a.mean()) * (b - b.mean())).mean()
                above = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)
                values.append(above / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)))
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("shape", "window"), [((3, 1, 8, 8), 3), ((2, 3, 16, 15), 7), ((2, 1, 28, 28), 7), ((2, 1, 3, 5), 3), ((2, 1, 11, 12), 5)]
)
def test_structural_similarity_is_that_of_one_window_after_another(shape: tuple[int, ...], window: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.random(shape)
    y = np.clip(x + 0.2 * generator.standard_normal(shape), 0, 1)
    assert structural_similarity(torch.tensor(x), torch.tensor(y)) == pytest.approx(naive_ssim(x, y, window), abs=1e-9)
    assert structural_similarity(torch.tensor(x), torch.tensor(x)) == pytest.approx(1)


def test_the_ratio_of_peak_to_noise_is_minus_ten_decades_of_the_error() -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = score(x, x + 0.1)
    assert found.mse == pytest.approx(0.01, rel=1e-5) and found.psnr == pytest.approx(20, rel=1e-5)
    assert score(x, x).psnr == pytest.approx(120) and math.isfinite(score(x, x).psnr)


def test_only_images_have_a_structural_similarity() -> None:
    assert score(torch.zeros(2, 5), torch.zeros(2, 5)).ssim is None
    assert [is_image(shape) for shape in ((1, 8, 8), (3, 32, 32), (2, 8, 8), (1, 2, 8), (8,))] == [True, True, False, False, False]


def naive_distance_correlation(x: np.ndarray, y: np.ndarray) -> float:
    def centred(rows: np.ndarray) -> np.ndarray:
        count = len(rows)
        distances = np.array([[np.linalg.norm(rows[i] - rows[j]) for j in range(count)] for i in range(count)])
        mean = distances.mean()
        return np.array(
            [[distances[i, j] - distances[i].mean() - distances[:, j].mean() + mean for j in range(count)] for i in range(count)]
        )

    a, b = centred(x), centred(y)
    return math.sqrt((a * b).mean() / math.sqrt((a * a).mean() * (b * b).mean()))


def test_distance_correlation_is_that_of_its_definition() -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((30, 4))
    y = np.hstack([x[:, :2] ** 2, generator.standard_normal((30, 1))])
    assert distance_correlation(torch.tensor(x), torch.tensor(y)) == pytest.approx(naive_distance_correlation(x, y), abs=1e-9)


def test_a_scaled_and_turned_copy_depends_wholly_and_a_constant_not_at_all() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    turned = 3 * x @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3))).Q
    assert distance_correlation(x, turned) == pytest.approx(1, abs=1e-6)
    assert distance_correlation(x, torch.ones(40, 2)) == 0
