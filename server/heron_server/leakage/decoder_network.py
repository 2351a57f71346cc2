"""A network that is trained to undo a front, on rows of the attacker's own, with the defence's random numbers drawn anew in every epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from heron_server.leakage.defence import Defence

_LARGEST_FLAT = 4096
"""Activations of more numbers that are an image's are decoded by convolutions, where each pixel depends on what is near it."""


@dataclass(frozen=True)
class TrainingSettings:
    """How long a decoder is trained: at most `steps` of `batch` rows at a rate that falls to nothing, until `patience` looks at held-out rows in a row help no more."""

    steps: int = 1500
    batch: int = 128
    rate: float = 2e-3
    look_every: int = 50
    patience: int = 8


FLAT = TrainingSettings()

LOCAL = TrainingSettings(steps=800, batch=32)
"""A step of convolutions over an image takes some fifty times as long."""


class DecoderNetwork(nn.Module):
    """A linear path beside a perceptron of two hidden layers: [n, k] -> [n, d]."""

    def __init__(self, features: int, outputs: int, *, hidden: int = 384) -> None:
        super().__init__()
        self.straight = nn.Linear(features, outputs)
        self.bent = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return guesses of standardised samples."""
        flat = z.flatten(1)
        guess: torch.Tensor = self.straight(flat) + self.bent(flat)
        return guess


class LocalDecoder(nn.Module):
    """Convolutions at the map's size and at the image's: [n, c, h, w] -> [n, channels * height * width]."""

    def __init__(self, channels_in: int, shape: tuple[int, ...], *, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, width, 3, padding=1),
            nn.GELU(),
            nn.Upsample(size=shape[1:]),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, shape[0], 3, padding=1),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return guesses of standardised samples."""
        guess: torch.Tensor = self.layers(z).flatten(1)
        return guess


def train_decoder(
    z: torch.Tensor,
    x: torch.Tensor,
    *,
    held_z: torch.Tensor,
    held_x: torch.Tensor,
    defence: Defence,
    settings: TrainingSettings | None = None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Train on rows z [n, ...], clipped and no more, and samples x [n, *shape]; return what decodes activations as they arrive.

    Of all weights that were looked at those are kept that did best on the held-out rows, whose activations are as they arrive.
    """
    shape = tuple(x.shape[1:])
    centre, spread = z.mean(0), max(float(z.std()), 1e-6)
    mean, deviation = x.flatten(1).mean(0), max(float((x - x.mean(0)).std()), 1e-6)
    local = z.dim() == 4 and z[0].numel() > _LARGEST_FLAT and len(shape) == 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LocalDecoder(z.shape[1], shape) if local else DecoderNetwork(z[0].numel(), math.prod(shape))
    fit(
        network,
        lambda draw: (defence.sent(z, draw) - centre) / spread,
        (x.flatten(1) - mean) / deviation,
        held=((held_z - centre) / spread, (held_x.flatten(1) - mean) / deviation),
        loss=nn.functional.mse_loss,
        redraws=defence.is_random,
        settings=settings or (LOCAL if local else FLAT),
    )

    def decode(arrived: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            pieces = [network((piece - centre) / spread) for piece in torch.split(arrived, 64)]
        return (torch.cat(pieces) * deviation + mean).reshape(-1, *shape)

    return decode


def fit(
    network: nn.Module,
    inputs: Callable[[int], torch.Tensor],
    aims: torch.Tensor,
    *,
    held: tuple[torch.Tensor, torch.Tensor],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    redraws: bool,
    settings: TrainingSettings,
) -> None:
    """Train a network in place by Adam with early stopping; `inputs` returns all rows as a draw has them, and is asked once an epoch where that matters."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), settings.rate, fused=True)
    epoch = max(1, len(aims) // settings.batch)
    best, kept, looks = math.inf, copy.deepcopy(network.state_dict()), 0
    rows = inputs(0)
    for step in range(settings.steps):
        if redraws and step and step % epoch == 0:
            rows = inputs(step)
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * (1 - step / settings.steps)
        chosen = torch.randint(len(aims), (min(settings.batch, len(aims)),), generator=generator)
        optimiser.zero_grad()
        loss(network(rows[chosen]), aims[chosen]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if (step + 1) % settings.look_every:
            continue
        with torch.no_grad():
            found = float(loss(network(held[0]), held[1]))
        looks = 0 if found < best else looks + 1
        if found < best:
            best, kept = found, copy.deepcopy(network.state_dict())
        if looks >= settings.patience:
            break
    network.load_state_dict(kept)
