"""How named tensors lie in one flat float32 buffer, and in which blocks that buffer is walked."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from heron_common.numerics.tensors import Float32Array, Int64Array, TensorSpec

BLOCK = 1 << 16
"""Weights perturbed at a time: the scratch of a block stays in a core's cache and client memory does not grow with the model."""


@dataclass(frozen=True)
class Block:
    """Weights [start, stop) of the flat buffer and the pieces of tensors in it: tensor `tensors[i]` has `lengths[i]` weights here."""

    start: int
    stop: int
    _: KW_ONLY
    tensors: Int64Array
    lengths: Int64Array


@dataclass(frozen=True)
class FlatLayout:
    """Tensors one after the other, in the given order, without gaps."""

    specs: tuple[TensorSpec, ...]

    @cached_property
    def num_parameters(self) -> int:
        """The dimension d of the flat buffer."""
        return sum(spec.num_elements for spec in self.specs)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The first index of each tensor, and the end of the last."""
        edges = [0]
        for spec in self.specs:
            edges.append(edges[-1] + spec.num_elements)
        return tuple(edges)

    def views(self, flat: Float32Array) -> list[Float32Array]:
        """Return each tensor as a shaped view of `flat`; nothing is copied."""
        if flat.shape != (self.num_parameters,):
            raise ValueError(f"expected a flat buffer of {self.num_parameters} weights, got shape {flat.shape}")
        return [flat[a:b].reshape(s.shape) for a, b, s in zip(self.offsets, self.offsets[1:], self.specs, strict=False)]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The flat buffer cut at multiples of BLOCK."""
        return tuple(self._block(start, min(start + BLOCK, self.num_parameters)) for start in range(0, self.num_parameters, BLOCK))

    def _block(self, start: int, stop: int) -> Block:
        pieces = [
            (index, min(b, stop) - max(a, start))
            for index, (a, b) in enumerate(zip(self.offsets, self.offsets[1:], strict=False))
            if min(b, stop) > max(a, start)
        ]
        tensors, lengths = np.array(pieces, np.int64).T
        return Block(start, stop, tensors=tensors, lengths=lengths)


def spread(per_tensor: npt.NDArray[np.float32], block: Block) -> Float32Array:
    """Return one value per weight of `block` from one value per tensor."""
    return np.repeat(per_tensor[block.tensors], block.lengths)
