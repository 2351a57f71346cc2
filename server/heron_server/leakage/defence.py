"""What a device does to a row of activations before it leaves: clips it, adds noise, rounds it for the wire."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch

from heron_common.errors import ConfigurationError
from heron_common.numerics.directions import PerturbationSeed
from heron_common.numerics.wire_dtypes import WireDtype, decode_rows, encode_rows


@dataclass(frozen=True)
class Defence:
    """What stands between a front and whoever reads its activations. An attacker knows it, but not the random numbers that a device draws.

    Attributes:
        dtype: what activations are rounded to.
        clip: largest root mean square of a row; a larger row is scaled down to it. None leaves rows as they are.
        noise: standard deviation of Gaussian noise on each number, as a share of `clip`: without a clip no noise is large beside every row.

    Raises:
        ConfigurationError: there is noise without a clip.

    """

    dtype: WireDtype = WireDtype.FLOAT32
    _: KW_ONLY
    clip: float | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.noise > 0 and self.clip is None:
            raise ConfigurationError(
                f"--noise {self.noise:g} is a share of the largest root mean square of a row: give it by --clip, like --clip 1"
            )

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in units of activations."""
        return self.noise * self.clip if self.clip is not None else 0.0

    @property
    def is_random(self) -> bool:
        """Whether the same row leaves differently the next time."""
        return self.noise > 0 or self.dtype is WireDtype.INT8

    def clipped(self, z: torch.Tensor) -> torch.Tensor:
        """Return z min(1, clip / rms(z)) for each row, [n, ...]; gradients pass."""
        if self.clip is None:
            return z
        rms = z.flatten(1).square().mean(1).clamp(min=1e-24).sqrt()
        return z * (self.clip / rms).clamp(max=1.0).reshape(-1, *(1,) * (z.dim() - 1))

    def sent(self, z: torch.Tensor, draw: int) -> torch.Tensor:
        """Return clipped rows as they arrive, [n, ...] float32: noise added, rounded for the wire and read again. Other draws have other random numbers."""
        if self.noise > 0:
            z = z + self.deviation * torch.randn(z.shape, generator=torch.Generator().manual_seed(draw))
        # A device rounds int8 stochastically, by a stream of its own for each row.
        encoded = encode_rows(z.numpy(), self.dtype, noise_seed=PerturbationSeed(draw, 0), first_row=0)
        return torch.from_numpy(decode_rows(encoded, self.dtype, tuple(z.shape)).copy())
