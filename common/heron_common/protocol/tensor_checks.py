"""Are the values of a tensor's bytes admissible? Checked piece by piece as they arrive, before anything is kept."""

from __future__ import annotations

import math

import numpy as np

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import NUMPY_DTYPES, DType, TensorSpec
from heron_common.numerics.wire_dtypes import WireDtype, check_row_values
from heron_common.specification.data_specification import IGNORED, DataSpecification, Task


def check_values(spec: TensorSpec, data: bytes | memoryview, *, expected: DataSpecification, offset: int = 0) -> None:
    """Check a piece of a tensor that begins `offset` bytes into it: numbers are finite, int64 values are labels in range, a mask is of zeros and ones.

    Raises:
        RefusedError: NON_FINITE or LABEL_RANGE, or INVALID_TENSOR when the piece is not whole elements.

    """
    itemsize = NUMPY_DTYPES[spec.dtype].itemsize
    if len(data) % itemsize:
        raise RefusedError(
            ErrorCode.INVALID_TENSOR, f"a chunk of {spec.name!r} has {len(data)} bytes, which is not a multiple of {itemsize}"
        )
    if spec.dtype is DType.INT64:
        _check_labels(np.frombuffer(data, NUMPY_DTYPES[spec.dtype]), expected)
    elif spec.dtype is DType.UINT8:
        if len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
            raise RefusedError(ErrorCode.INVALID_TENSOR, f"tensor {spec.name!r} must hold zeros and ones: update the client")
    elif not _is_finite(spec, memoryview(data), offset):
        raise RefusedError(
            ErrorCode.NON_FINITE, f"tensor {spec.name!r} must be finite, but holds NaN or infinity: check the client's data and step"
        )


def _is_finite(spec: TensorSpec, data: memoryview, offset: int) -> bool:
    if spec.dtype is DType.FLOAT64:
        return bool(np.isfinite(np.frombuffer(data, NUMPY_DTYPES[spec.dtype])).all())
    return check_row_values(data, WireDtype(spec.dtype.value), elements_per_row=math.prod(spec.shape[1:]), offset_in_tensor=offset)


def _check_labels(values: np.ndarray[tuple[int], np.dtype[np.int64]], expected: DataSpecification) -> None:
    num_classes = expected.num_classes
    if expected.task is Task.NEXT_TOKEN:
        values = values[values != IGNORED]
    if values.size and (int(values.min()) < 0 or int(values.max()) >= num_classes):
        bad = int(values.min()) if int(values.min()) < 0 else int(values.max())
        raise RefusedError(
            ErrorCode.LABEL_RANGE,
            f"labels must lie in [0, {num_classes}), but {bad} came: check the data against the run's data specification",
        )
