"""Each attack against a closed form or a floor that it must reach: a weak attack would call everything private."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from heron_common.data.sources import open_source, parse_specification
from heron_common.numerics.wire_dtypes import WireDtype
from heron_server.leakage.decoder_network import TrainingSettings, fit, train_decoder
from heron_server.leakage.defence import Defence
from heron_server.leakage.fisher import mean_sensitivity
from heron_server.leakage.inversion import ErrorPrior, invert
from heron_server.leakage.ridge import RidgeDecoder, best_ridge
from heron_server.leakage.rows import AttackRows
from heron_server.leakage.sweep import Assault
from heron_server.leakage.target import Target
from heron_server.models.registry import build_model


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "features"), [(50, 7), (20, 60)])
def test_ridge_is_the_closed_form_whichever_of_its_two_forms_is_solved(rows: int, features: int) -> None:
    z, x, new, penalty = normal(rows, features, seed=0), normal(rows, 5, seed=1), normal(9, features, seed=2), 0.3
    a = (z - z.mean(0)).double().numpy()
    b = (x - x.mean(0)).double().numpy()
    # Rows of zeros and sqrt(n penalty) make a plain least squares problem of it.
    stacked = np.vstack([a, math.sqrt(rows * penalty) * np.eye(features)])
    weights = np.linalg.lstsq(stacked, np.vstack([b, np.zeros((features, 5))]), rcond=None)[0]
    expected = (new - z.mean(0)).double().numpy() @ weights + x.mean(0).double().numpy()
    np.testing.assert_allclose(RidgeDecoder(z, x, penalty)(new).numpy(), expected, atol=1e-5)


def test_on_a_linear_front_with_noise_ridge_finds_the_analytic_optimum() -> None:
    """Of x ~ N(0, S) and z = A x + noise the best estimate has the error tr(S - S A' (A S A' + s^2 I)^-1 A S) / d."""
    d, k, deviation = 12, 6, 0.5
    spread = torch.linspace(0.2, 2, d)
    front = normal(k, d, seed=3)
    x = normal(8000, d, seed=4) * spread
    noisy = x @ front.T + deviation * normal(8000, k, seed=5)
    known, held = slice(0, 5000), slice(5000, 6000)
    decoder = best_ridge((x @ front.T)[known], x[known], held_z=noisy[held], held_x=x[held])
    found = float((decoder(noisy[6000:]) - x[6000:]).square().mean())
    a, s = front.double().numpy(), np.diag(spread.double().numpy() ** 2)
    optimum = np.trace(s - s @ a.T @ np.linalg.inv(a @ s @ a.T + deviation**2 * np.eye(k)) @ a @ s) / d
    assert found == pytest.approx(optimum, rel=0.05)


def test_on_a_linear_front_the_white_box_attack_finds_the_analytic_optimum() -> None:
    """The likeliest x around a guess m, errors N(0, S): m + S A' (A S A' + s^2 I)^-1 (z - A m)."""
    d, k, deviation = 12, 6, 0.05
    spread = torch.linspace(0.02, 0.1, d)
    front, guess = normal(k, d, seed=3), torch.full((20, d), 0.5)
    z = (guess + normal(20, d, seed=4) * spread) @ front.T + deviation * normal(20, k, seed=5)
    prior = ErrorPrior(torch.diag(spread), 1e-6)
    # mean (f(x) - z)^2 + weight |.|^2 / d is the logarithm of the likelihood where weight = s^2 d / k.
    found = invert(lambda rows: rows @ front.T, z, guess=guess, prior=prior, weight=deviation**2 * d / k, scale=1.0)
    a, s = front.double().numpy(), np.diag(spread.double().numpy() ** 2)
    gain = s @ a.T @ np.linalg.inv(a @ s @ a.T + deviation**2 * np.eye(k))
    expected = guess.numpy() + (z - guess @ front.T).double().numpy() @ gain.T
    moved = np.square(guess.numpy() - expected).mean()
    assert np.square(found.numpy() - expected).mean() < 0.001 * moved and moved > 0.02**2


def test_a_prior_of_errors_is_as_large_as_errors_that_the_decoder_had_not_seen() -> None:
    spread = torch.linspace(0.1, 1, 6)
    prior = ErrorPrior.of(0.1 * normal(4000, 6, seed=0) * spread, normal(4000, 6, seed=1) * spread)
    torch.testing.assert_close(prior.basis.T @ prior.basis, torch.diag(spread**2), atol=0.05, rtol=0.1)
    assert prior.deviation < 0.01


def digits(options: dict[str, object], *, attacked: int, own: int, defence: Defence) -> tuple[Target, AttackRows]:
    data = parse_specification("digits")
    model = build_model("cnn", options, data=data, seed=0)
    rows = Assault(open_source("digits:train"), defence, attacked=attacked, own=own).rows(model, data)
    return Target(model, data, defence=defence, known=rows.own), rows


def test_of_a_wide_cut_of_512_floats_the_digits_come_back() -> None:
    target, rows = digits({"front_widths": [8], "front_strides": [1]}, attacked=16, own=300, defence=Defence())
    own, held, attacked = (target.scaled(samples) for samples in (rows.own, rows.held, rows.attacked))
    z, held_z, arrived = (target.activations(samples).flatten(1) for samples in (own, held, attacked))
    assert arrived.shape[1] == 512
    ridge = best_ridge(z, own.flatten(1), held_z=held_z, held_x=held.flatten(1))

    def guess(some: torch.Tensor) -> torch.Tensor:
        return ridge(some).reshape(-1, 1, 8, 8)

    prior = ErrorPrior.of((own - guess(z)).flatten(1), (held - guess(held_z)).flatten(1))
    scale = float(z.square().mean())

    def front(x: torch.Tensor) -> torch.Tensor:
        return target(x).flatten(1)

    found = invert(front, arrived, guess=guess(arrived), prior=prior, weight=1e-4, scale=scale)
    mean_sample = float((attacked - own.mean(0)).square().mean())
    error = float((found - attacked).square().mean())
    assert mean_sample > 0.06
    assert error < 0.0005 and error < float((guess(arrived) - attacked).square().mean()) / 5


def test_a_network_undoes_what_no_linear_decoder_can() -> None:
    # Not the whole circle, whose two ends no decoder can tell apart.
    x = 0.1 + 0.8 * torch.rand(900, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    angle = 2 * math.pi * x.flatten(1)
    z = torch.cat([angle.sin(), angle.cos()], 1)
    settings = TrainingSettings(steps=400, batch=64)
    decode = train_decoder(z[:600], x[:600], held_z=z[600:700], held_x=x[600:700], defence=Defence(), settings=settings)
    ridge = best_ridge(z[:600], x[:600].flatten(1), held_z=z[600:700], held_x=x[600:700].flatten(1))
    linear = float((ridge(z[700:]) - x[700:].flatten(1)).square().mean())
    assert float((decode(z[700:]) - x[700:]).square().mean()) < linear / 4


def test_the_weights_that_did_best_on_held_out_rows_are_kept() -> None:
    """Labels are noise, so that every step of training makes held-out rows worse sooner or later."""
    x, aims = normal(40, 5, seed=0), normal(40, 3, seed=1)
    held = normal(200, 5, seed=2), normal(200, 3, seed=3)
    seen: list[float] = []

    def loss(guess: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
        error = (guess - aim).square().mean()
        if len(guess) == 200:
            seen.append(float(error.detach()))
        return error

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3))
    settings = TrainingSettings(steps=1000, batch=20, look_every=10, patience=5)
    fit(network, lambda draw: x, aims, held=held, loss=loss, redraws=False, settings=settings)
    assert len(seen) < 100 and seen[-1] > min(seen)
    assert float(loss(network(held[0]), held[1]).detach()) == pytest.approx(min(seen))


def test_random_numbers_of_a_defence_are_drawn_anew_in_every_epoch() -> None:
    draws: list[int] = []

    def inputs(draw: int) -> torch.Tensor:
        draws.append(draw)
        return normal(40, 5, seed=draw)

    settings = TrainingSettings(steps=10, batch=20)
    arguments = {"held": (normal(8, 5, seed=1), normal(8, 2, seed=2)), "loss": nn.functional.mse_loss, "settings": settings}
    fit(nn.Linear(5, 2), inputs, normal(40, 2, seed=0), redraws=True, **arguments)
    assert draws == [0, 2, 4, 6, 8]
    draws.clear()
    fit(nn.Linear(5, 2), inputs, normal(40, 2, seed=0), redraws=False, **arguments)
    assert draws == [0]


def test_the_information_of_a_linear_front_is_its_closed_form() -> None:
    """Of z = A x + N(0, s^2 I) it is A'A / s^2, whose mean diagonal is |A|^2 / (d s^2)."""
    weights = normal(6, 10, seed=0)
    found = mean_sensitivity(lambda x: x @ weights.T, normal(64, 10, seed=1), probes=400)
    assert found == pytest.approx(float(weights.square().sum()) / 10, rel=0.05)
    # Where A A' is diagonal the estimate has no spread.
    turned = torch.linalg.qr(normal(10, 10, seed=2)).Q[:4] * 3
    assert mean_sensitivity(lambda x: x @ turned.T, normal(2, 10, seed=3), probes=1) == pytest.approx(4 * 9 / 10, rel=1e-5)


def test_a_clipped_row_is_no_longer_than_it_may_be_and_noise_is_a_share_of_that() -> None:
    z = normal(300, 2, 4, 4, seed=0) * torch.linspace(0.1, 5, 300)[:, None, None, None]
    defence = Defence(clip=0.5, noise=0.4)
    clipped = defence.clipped(z)
    rms = clipped.flatten(1).square().mean(1).sqrt()
    short = z.flatten(1).square().mean(1).sqrt() <= 0.5
    assert bool(short.any()) and float(rms.max()) == pytest.approx(0.5, rel=1e-5)
    torch.testing.assert_close(clipped[short], z[short])
    noise = defence.sent(clipped, 7) - clipped
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02) and abs(float(noise.mean())) < 0.01
    torch.testing.assert_close(defence.sent(clipped, 7), defence.sent(clipped, 7), rtol=0, atol=0)
    assert not torch.equal(defence.sent(clipped, 7), defence.sent(clipped, 8))


@pytest.mark.parametrize(
    ("dtype", "error"), [(WireDtype.FLOAT32, 0), (WireDtype.FLOAT16, 1e-3), (WireDtype.BFLOAT16, 8e-3), (WireDtype.INT8, 4e-2)]
)
def test_activations_arrive_as_the_wire_rounds_them(dtype: WireDtype, error: float) -> None:
    z = normal(20, 3, 4, seed=0)
    away = float((Defence(dtype).sent(z, 0) - z).abs().max())
    assert away <= error * float(z.abs().max()) and (away > 0) == (error > 0)
    assert Defence(dtype).is_random is (dtype is WireDtype.INT8)
