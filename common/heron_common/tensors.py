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


class DType(StrEnum):
    """The dtypes that may travel."""

    FLOAT32 = "float32"
    INT64 = "int64"


NUMPY_DTYPES: dict[DType, np.dtype[Any]] = {DType.FLOAT32: np.dtype("<f4"), DType.INT64: np.dtype("<i8")}
"""Every member of DType has an entry; a test compares the table with the wire enum too."""


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
        """Bytes of the raw tensor."""
        return self.num_elements * NUMPY_DTYPES[self.dtype].itemsize

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


def check_values(spec: TensorSpec, data: bytes | memoryview, num_classes: int) -> None:
    """Check the values of a piece of a tensor: floats are finite, int64 values are labels in [0, num_classes).

    Raises:
        RefusedError: NON_FINITE or LABEL_RANGE, or INVALID_TENSOR when the piece is not whole elements.

    """
    dtype = NUMPY_DTYPES[spec.dtype]
    if len(data) % dtype.itemsize:
        raise RefusedError(
            ErrorCode.INVALID_TENSOR, f"a chunk of {spec.name!r} has {len(data)} bytes, which is not a multiple of {dtype.itemsize}"
        )
    values = np.frombuffer(data, dtype)
    if spec.dtype is DType.FLOAT32:
        if not bool(np.isfinite(values).all()):
            raise RefusedError(
                ErrorCode.NON_FINITE, f"tensor {spec.name!r} must be finite, but holds NaN or infinity: check the client's data and step"
            )
    elif values.size and (int(values.min()) < 0 or int(values.max()) >= num_classes):
        bad = int(values.min()) if int(values.min()) < 0 else int(values.max())
        raise RefusedError(
            ErrorCode.LABEL_RANGE,
            f"labels must lie in [0, {num_classes}), but {bad} came: check the data against the run's data specification",
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
