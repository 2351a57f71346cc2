"""Tensors as described on the wire: a closed dtype table, a specification, validated decoding.

Formats never depend on the environment: little-endian, C order, no pickle. Sizes are exact integer products, checked before anything is allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError

MAX_RANK = 8

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Uint8Array = npt.NDArray[np.uint8]


class DType(StrEnum):
    """The dtypes that may travel."""

    FLOAT32 = "float32"
    INT64 = "int64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    FLOAT64 = "float64"
    UINT8 = "uint8"


NUMPY_DTYPES: dict[DType, np.dtype[Any]] = {
    DType.FLOAT32: np.dtype("<f4"),
    DType.INT64: np.dtype("<i8"),
    DType.FLOAT16: np.dtype("<f2"),
    # numpy has no bfloat16; what travels are its bits.
    DType.BFLOAT16: np.dtype("<u2"),
    DType.INT8: np.dtype("i1"),
    DType.FLOAT64: np.dtype("<f8"),
    DType.UINT8: np.dtype("u1"),
}
"""Every member of DType has an entry; a test compares the table with the wire enum too."""

SCALE_BYTES = 4
"""Every row (index of the first dimension) of an int8 tensor is preceded by its float32 scale."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor; dimensions are at least 1."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the dimensions, an exact Python integer."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the raw tensor, scales of int8 rows included."""
        scales = SCALE_BYTES * (self.shape[0] if self.shape else 1) if self.dtype is DType.INT8 else 0
        return self.num_elements * NUMPY_DTYPES[self.dtype].itemsize + scales

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension; of the whole tensor for a scalar."""
        return self.size_bytes // self.shape[0] if self.shape else self.size_bytes


def total_bytes(specs: tuple[TensorSpec, ...]) -> int:
    """Return the bytes of all tensors together."""
    return sum(spec.size_bytes for spec in specs)


def num_parameters(specs: tuple[TensorSpec, ...]) -> int:
    """Return the number of elements of all tensors together."""
    return sum(spec.num_elements for spec in specs)


def check_specs(expected: tuple[TensorSpec, ...], announced: tuple[TensorSpec, ...]) -> None:
    """Compare what a header announces with what this round expects.

    Raises:
        RefusedError: INVALID_TENSOR, naming the first tensor that differs, what was expected and what came.

    """
    if len(expected) != len(announced):
        raise RefusedError(
            ErrorCode.INVALID_TENSOR,
            f"expected {len(expected)} tensors ({', '.join(s.name for s in expected)}), the header announces {len(announced)}",
        )
    for want, came in zip(expected, announced, strict=True):
        if want != came:
            raise RefusedError(
                ErrorCode.INVALID_TENSOR,
                f"expected tensor {want.name!r} as {want.dtype.value}{list(want.shape)}, "
                f"the header announces {came.name[:80]!r} as {came.dtype.value}{list(came.shape[: MAX_RANK + 1])}",
            )


def encode(array: npt.NDArray[Any], spec: TensorSpec) -> memoryview:
    """Return the raw little-endian bytes of `array`, without a copy where its layout allows it."""
    if array.shape != spec.shape:
        raise ValueError(f"expected shape {spec.shape} for {spec.name!r}, got {array.shape}")
    return raw_bytes(np.ascontiguousarray(array, NUMPY_DTYPES[spec.dtype]))


def raw_bytes(array: npt.NDArray[Any]) -> memoryview:
    """Return a contiguous array's bytes as a flat memoryview; nothing is copied."""
    view: memoryview = array.reshape(-1).view(np.uint8).data
    return view


def decode(data: bytes | bytearray | memoryview, spec: TensorSpec) -> npt.NDArray[Any]:
    """Return the tensor that `data` holds, as a view.

    Raises:
        RefusedError: INVALID_TENSOR if the length is not exactly the specification's.

    """
    if len(data) != spec.size_bytes:
        raise RefusedError(ErrorCode.INVALID_TENSOR, f"expected {spec.size_bytes} bytes for {spec.name!r}, got {len(data)}")
    return np.frombuffer(data, NUMPY_DTYPES[spec.dtype]).reshape(spec.shape)
