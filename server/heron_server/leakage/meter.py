"""Every attack on one cut of samples of numbers, and what each of them gets, beside what a guess gets that sees no activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch

from heron_common.specification.data_specification import DataSpecification, Task
from heron_server.leakage.decoder_network import train_decoder
from heron_server.leakage.defence import Defence
from heron_server.leakage.fisher import mean_sensitivity
from heron_server.leakage.inversion import ErrorPrior, best_weight, invert
from heron_server.leakage.measures import Score, distance_correlation, score
from heron_server.leakage.ridge import best_ridge
from heron_server.leakage.rows import AttackRows
from heron_server.leakage.target import Target
from heron_server.models.split_model import SplitModel

Progress = Callable[[str], None]
"""Hears a few words before each step that takes long."""

MEAN_SAMPLE, CLASS_MEAN = "mean sample", "class mean"
RIDGE, NETWORK, WHITE_BOX = "ridge decoder", "decoder network", "white-box"

MOST_NUMBERS = 1 << 26
"""Activations of the attacker's own rows, all together: 256 MiB."""

_ARRIVED, _HELD, _OWN = 1 << 30, (1 << 30) + 1, (1 << 30) + 2
"""Draws of random numbers that no epoch of an attack has."""

_SENSITIVITY_ROWS = 64


@dataclass(frozen=True)
class Leakage:
    """What one cut gives away.

    Attributes:
        cut: its name.
        activations: the shape of a sample's activations.
        own_rows: how many rows the attacker had.
        guesses: of each guess that sees no activations how near it is: the mean of the attacker's samples, and of those of the same class, which the
            server knows by the label.
        attacks: of each attack how near its reconstructions are.
        samples, reconstructions: those attacked and what the strongest makes of them, [attacked, *shape] in units of the data's range.
        distance_correlation: of attacked samples and their activations as they arrive.
        fisher: diagonal Fisher information leakage, where there is Gaussian noise; information, no promise.

    """

    cut: str
    activations: tuple[int, ...]
    _: KW_ONLY
    own_rows: int
    guesses: dict[str, Score]
    attacks: dict[str, Score]
    samples: torch.Tensor
    reconstructions: torch.Tensor
    distance_correlation: float
    fisher: float | None

    @property
    def strongest(self) -> str:
        """The attack with the smallest error."""
        return min(self.attacks, key=lambda name: self.attacks[name].mse)

    @property
    def recovered(self) -> float:
        """1 - error of the strongest attack / error of the mean sample, in [0, 1]: 0 tells nothing of a sample, 1 is the sample itself."""
        return max(0.0, 1 - self.attacks[self.strongest].mse / max(self.guesses[MEAN_SAMPLE].mse, 1e-24))


def measure(
    model: SplitModel, data: DataSpecification, rows: AttackRows, *, cut: str, defence: Defence, progress: Progress = lambda words: None
) -> Leakage:
    """Attack the activations of one cut; the front is put into evaluation mode."""
    target = Target(model, data, defence=defence, known=torch.cat([rows.own, rows.held]))
    rows = rows.limited(target.activations(target.scaled(rows.attacked[:1])).numel(), MOST_NUMBERS)
    own, held, attacked = (target.scaled(samples) for samples in (rows.own, rows.held, rows.attacked))
    arrived = defence.sent(target.activations(attacked), _ARRIVED)
    found = _reconstructions(target, own, held, arrived=arrived, defence=defence, progress=progress)
    attacks = {name: score(attacked, guess) for name, guess in found.items()}
    strongest = min(attacks, key=lambda name: attacks[name].mse)
    sensitivity = mean_sensitivity(target, attacked[:_SENSITIVITY_ROWS]) if defence.noise > 0 else None
    return Leakage(
        cut,
        tuple(arrived.shape[1:]),
        own_rows=rows.num_known,
        guesses={name: score(attacked, guess) for name, guess in _guesses(data, rows, own, attacked).items()},
        attacks=attacks,
        samples=attacked,
        reconstructions=found[strongest],
        distance_correlation=distance_correlation(attacked, arrived),
        fisher=None if sensitivity is None else sensitivity / defence.deviation**2,
    )


def _guesses(data: DataSpecification, rows: AttackRows, own: torch.Tensor, attacked: torch.Tensor) -> dict[str, torch.Tensor]:
    mean = own.mean(0, keepdim=True)
    found = {MEAN_SAMPLE: mean.expand_as(attacked)}
    if data.task is Task.CLASSIFICATION:
        members = [own[rows.own_labels == label] for label in range(data.num_classes)]
        # Of a class that the attacker has never seen it knows no more than of all.
        means = torch.cat([some.mean(0, keepdim=True) if len(some) else mean for some in members])
        found[CLASS_MEAN] = means[rows.attacked_labels.long()]
    return found


def _reconstructions(
    target: Target, own: torch.Tensor, held: torch.Tensor, *, arrived: torch.Tensor, defence: Defence, progress: Progress
) -> dict[str, torch.Tensor]:
    """Return what each attack makes of the activations that arrived, [n, *shape]."""
    shape = own.shape[1:]
    z = target.activations(own)
    held_z = defence.sent(target.activations(held), _HELD)
    progress(RIDGE)
    ridge = best_ridge(z.flatten(1), own.flatten(1), held_z=held_z.flatten(1), held_x=held.flatten(1))
    progress(NETWORK)
    network = train_decoder(z, own, held_z=held_z, held_x=held, defence=defence)
    decoders: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        RIDGE: lambda sent: ridge(sent.flatten(1)).reshape(-1, *shape),
        NETWORK: network,
    }
    better = min(decoders.values(), key=lambda decode: float((decode(held_z) - held).square().mean()))
    progress(WHITE_BOX)
    guessed = better(defence.sent(z, _OWN))
    prior = ErrorPrior.of((own - guessed).flatten(1), (held - better(held_z)).flatten(1))
    scale = max(float(z.square().mean()), 1e-12)
    weight = best_weight(target, held_z, held, guess=better(held_z), prior=prior, scale=scale)
    inverted = invert(target, arrived, guess=better(arrived), prior=prior, weight=weight, scale=scale)
    return {**{name: decode(arrived) for name, decode in decoders.items()}, WHITE_BOX: inverted}
