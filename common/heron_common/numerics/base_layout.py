"""Where frozen weights lie in the base's blob: one program input after the other, each at a multiple of 64 bytes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from heron_common.errors import ProgramError
from heron_common.numerics.tensors import NUMPY_DTYPES, DType, TensorSpec

ALIGNMENT = 64
"""Of a cache line: what a program reads in place begins where vector instructions like it."""


@dataclass(frozen=True)
class BaseRegion:
    """One program input: name, dtype and shape, and the bytes [offset, offset + size_bytes) of the blob."""

    name: str
    _: KW_ONLY
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class BaseLayout:
    """Regions in the order of the blob, `base.<i>` and, behind an int8 tensor, `base.<i>.scales` with a float32 per row."""

    regions: tuple[BaseRegion, ...]
    total_bytes: int


def base_layout(specs: tuple[TensorSpec, ...]) -> BaseLayout:
    """Return the layout of these tensors.

    Raises:
        ProgramError: an int8 tensor has no rows.

    """
    regions: list[BaseRegion] = []
    end = 0
    for index, spec in enumerate(specs):
        parts = [(f"base.{index}", spec.dtype, spec.shape)]
        if spec.dtype is DType.INT8:
            if not spec.shape:
                raise ProgramError(
                    f"a frozen int8 tensor has rows, each with a scale, but {spec.name[:80]!r} is a single number: restart the server"
                )
            parts.append((f"base.{index}.scales", DType.FLOAT32, (spec.shape[0],)))
        for name, dtype, shape in parts:
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            # Not the specification's own size, which counts the scales of int8 rows with their tensor.
            size = TensorSpec(name, dtype, shape).num_elements * NUMPY_DTYPES[dtype].itemsize
            regions.append(BaseRegion(name, dtype=dtype, shape=shape, offset=offset, size_bytes=size))
            end = offset + size
    return BaseLayout(tuple(regions), end)
