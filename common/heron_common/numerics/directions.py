"""Counter-based perturbation directions: derived from public seeds, never sent, equal in every process.

A direction u has E[u u^T] = I for every distribution. Rademacher directions are raw Philox-4x64 bits (Salmon et al. 2011), bit-equal on every platform:
weight i of group g is -1 where bit (i mod 64, least significant first) of word i // 64 is set. Words 4b to 4b+3 are the Philox block of counter
(b + 1, g, 0, 0), because numpy counts up before it generates. Gaussian and sphere directions come from numpy's Generator and are equal on one numpy build only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heron_common.ids import RoundReference
from heron_common.numerics.layout import BLOCK, Block, FlatLayout, spread
from heron_common.numerics.tensors import Float32Array, Float64Array

_WEIGHTS_PER_COUNTER = 256
_GAUSSIAN_STREAM = 1

_KEPT_BYTES = 1 << 16
"""Raw bits of a step that are kept, so that a step along small directions does not draw again what its passes have drawn."""


class DirectionDistribution(StrEnum):
    """Where directions come from; SPHERE has radius sqrt(num_parameters), so that all three have unit variance per weight."""

    RADEMACHER = "rademacher"
    GAUSSIAN = "gaussian"
    SPHERE = "sphere"


class PerturbationSeed(NamedTuple):
    """A 128-bit Philox key."""

    low: int
    high: int


def derive_seed(run_seed: int, client_id: str, *, round_reference: RoundReference, purpose: str, index: int) -> PerturbationSeed:
    """Return the key of one stream of randomness of a client's round; `purpose` keeps directions apart from sample order."""
    text = f"heron/1/{purpose}/{run_seed}/{client_id}/{round_reference.round_index}/{round_reference.attempt}/{index}"
    digest = hashlib.sha256(text.encode()).digest()
    return PerturbationSeed(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))


def raw_words(seed: PerturbationSeed, count: int) -> npt.NDArray[np.uint64]:
    """Return the first `count` raw 64-bit words of the stream of `seed`."""
    words: npt.NDArray[np.uint64] = np.random.Philox(key=np.array(seed, np.uint64)).random_raw(count)
    return words


class Directions:
    """The directions u_0, u_1, ... of one local step, one per group, over one flat buffer."""

    def __init__(self, seed: PerturbationSeed, distribution: DirectionDistribution, layout: FlatLayout) -> None:
        self._distribution = distribution
        self._layout = layout
        self._philox = np.random.Philox(key=np.array(seed, np.uint64))
        # Moving one generator is ten times cheaper than making one for every group. `state` is a snapshot in which its buffer is empty.
        self._state: Any = self._philox.state
        self._kept: dict[tuple[int, int], bytes] = {}
        """Raw words by group and first weight."""
        self._room = _KEPT_BYTES

    def add(self, group: int, magnitudes: Float64Array, *, base: Float32Array, target: Float32Array) -> None:
        """Set target = base + fl32(magnitude of the weight's tensor) * u_group; `target` may be `base`.

        With Rademacher directions this is exactly one IEEE addition per weight.

        Args:
            group: which direction of the step.
            magnitudes: [number of tensors], float64; rounded once to float32.
            base: [num_parameters], read.
            target: [num_parameters], written.

        """
        rounded = magnitudes.astype(np.float32)
        if self._distribution is DirectionDistribution.RADEMACHER:
            for block in self._layout.blocks:
                (signed,) = self._signed((group,), rounded[np.newaxis], block)
                np.add(base[block.start : block.stop], signed.view(np.float32), out=target[block.start : block.stop])
            return
        direction = self._dense(group)
        for block in self._layout.blocks:
            span = slice(block.start, block.stop)
            np.add(base[span], spread(rounded, block) * direction[span], out=target[span])

    def add_each(self, first: int, magnitudes: Float64Array, *, base: Float32Array, targets: Float32Array) -> None:
        """Set targets[i] = base + fl32(magnitude of the weight's tensor) * u_(first + i), bit for bit as `add` does one by one.

        Args:
            first: the first of as many directions as `targets` has rows.
            magnitudes: [number of tensors], float64.
            base: [num_parameters], read.
            targets: [directions, num_parameters], written.

        """
        if self._distribution is not DirectionDistribution.RADEMACHER or len(targets) == 1:
            for index, target in enumerate(targets):
                self.add(first + index, magnitudes, base=base, target=target)
            return
        rounded = magnitudes.astype(np.float32)[np.newaxis]
        for block in self._layout.blocks:
            signed = self._signed(range(first, first + len(targets)), rounded, block)
            np.add(base[block.start : block.stop], signed.view(np.float32), out=targets[:, block.start : block.stop])

    def add_in_turn(self, magnitudes: Float64Array, theta: Float32Array) -> None:
        """Add fl32(magnitudes[g]) * u_g to theta for g = 0, 1, ..., bit for bit as `add` does one after the other; a row of zeros is passed over.

        Args:
            magnitudes: [directions, number of tensors], float64; rounded once to float32.
            theta: [num_parameters], changed in place.

        """
        taken = np.flatnonzero(magnitudes.any(axis=1))
        if self._distribution is not DirectionDistribution.RADEMACHER:
            for group in taken:
                self.add(int(group), magnitudes[group], base=theta, target=theta)
            return
        rounded = magnitudes.astype(np.float32)
        for block in self._layout.blocks:
            span = theta[block.start : block.stop]
            at_once = max(1, BLOCK // span.size)
            for start in range(0, taken.size, at_once):
                groups = taken[start : start + at_once]
                addends = self._signed(groups.tolist(), rounded[groups], block).view(np.float32)
                # One after the other: a sum in another order has other bits.
                for addend in addends:
                    span += addend

    def materialise(self, group: int) -> Float32Array:
        """Return u_group as float32 values, [num_parameters]; for tests and small models."""
        unit = np.ones(len(self._layout.specs), np.float64)
        zeros = np.zeros(self._layout.num_parameters, np.float32)
        self.add(group, unit, base=zeros, target=zeros)
        return zeros

    def _signed(self, groups: Sequence[int], magnitudes: Float32Array, block: Block) -> npt.NDArray[np.uint32]:
        """Return the bits of magnitude * u for a block's weights in each of these directions, [groups, weights]; `magnitudes` has a row for all or for each."""
        signed = self._sign_bits(groups, block.start, block.stop)
        bits = magnitudes.view(np.uint32)
        uniform = bool((bits == bits[:, :1]).all())
        signed ^= bits[:, :1] if uniform else np.repeat(bits[:, block.tensors], block.lengths, axis=1)
        return signed

    def _sign_bits(self, groups: Sequence[int], start: int, stop: int) -> npt.NDArray[np.uint32]:
        """Return the sign bit of every weight from start to stop in each of these directions, [groups, stop - start]."""
        words = np.frombuffer(b"".join([self._words(group, start, stop) for group in groups]), np.uint8).reshape(len(groups), -1)
        bits = np.unpackbits(words, axis=1, count=stop - start, bitorder="little")
        signs = bits.astype(np.uint32)
        signs <<= 31
        return signs

    def _words(self, group: int, start: int, stop: int) -> bytes:
        """Return the raw words of the weights from start to stop in one direction, little-endian."""
        kept = self._kept.get((group, start))
        if kept is not None:
            return kept
        # start is a multiple of BLOCK, hence of the 256 weights that one counter value covers.
        self._seek(start // _WEIGHTS_PER_COUNTER, group, 0)
        drawn: bytes = self._philox.random_raw((stop - start + 63) // 64).astype("<u8", copy=False).tobytes()
        if len(drawn) <= self._room:
            self._room -= len(drawn)
            self._kept[group, start] = drawn
        return drawn

    def _dense(self, group: int) -> Float32Array:
        self._seek(0, group, _GAUSSIAN_STREAM)
        normal = np.random.Generator(self._philox).standard_normal(self._layout.num_parameters, np.float32)
        if self._distribution is DirectionDistribution.SPHERE:
            wide = normal.astype(np.float64)
            norm = math.sqrt(float(np.dot(wide, wide)))
            del wide
            normal *= np.float32(math.sqrt(self._layout.num_parameters) / norm)
        return normal

    def _seek(self, counter: int, group: int, stream: int) -> None:
        self._state["state"]["counter"][:] = (counter, group, stream, 0)
        self._philox.state = self._state
