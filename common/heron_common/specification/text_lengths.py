"""Several lengths of text in one run: which one a text is padded to, and what stands in a model's specification at each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import DType, Int64Array, TensorSpec
from heron_common.specification.data_specification import IGNORED, PADDING
from heron_common.specification.model_spec import ModelSpec

Samples = npt.NDArray[Any]


def of_length(model: ModelSpec, length: int) -> ModelSpec:
    """Return the model's specification for texts of one of its lengths; 0 is that of a model whose samples all have one shape.

    Raises:
        ValueError: it is none of them.

    """
    if length not in (model.lengths or (0,)):
        raise ValueError(f"expected one of the lengths {model.lengths or (0,)}, got {length}")
    if not model.lengths:
        return model

    def shortened(spec: TensorSpec) -> TensorSpec:
        return dataclasses.replace(spec, shape=(length, *spec.shape[1:]))

    has_label_for_each = model.labels.dtype is DType.INT64 and model.labels.shape != ()
    return dataclasses.replace(
        model,
        cut=shortened(model.cut),
        labels=shortened(model.labels) if has_label_for_each else model.labels,
        context=tuple(shortened(spec) for spec in model.context),
        lengths=(),
    )


def announced_length(model: ModelSpec, tensors: tuple[TensorSpec, ...]) -> int:
    """Return the length that the tensors of an upload name, 0 where all samples have one shape.

    Raises:
        RefusedError: INVALID_TENSOR, it is none of the run's.

    """
    if not model.lengths:
        return 0
    length = tensors[0].shape[1] if tensors and len(tensors[0].shape) > 1 else 0
    if length not in model.lengths:
        raise RefusedError(
            ErrorCode.INVALID_TENSOR,
            f"expected activations of texts of one of the lengths {', '.join(map(str, model.lengths))}, but the header announces "
            f"{length or 'none'}: pad a text to the smallest that holds it",
        )
    return length


def announced_model(model: ModelSpec, tensors: tuple[TensorSpec, ...]) -> ModelSpec:
    """Return the model's specification for the length that the tensors of an upload name; refuses like `announced_length`."""
    return of_length(model, announced_length(model, tensors))


def smallest_lengths(x: Samples, labels: Samples | None, lengths: tuple[int, ...]) -> Int64Array:
    """Return for each text the smallest length that holds its tokens and, where each token has one, its labels, [n].

    Args:
        x: [n, T], PADDING behind the end.
        labels: [n, T], IGNORED where nothing is asked for, or None.
        lengths: ascending, the last of them T.

    """
    used = x != PADDING
    if labels is not None:
        used = used | (labels != IGNORED)
    ends = np.where(used.any(1), x.shape[1] - np.argmax(used[:, ::-1], axis=1), 1)
    found: Int64Array = np.asarray(lengths, np.int64)[np.searchsorted(lengths, ends)]
    return found


def cut_to_length(samples: Samples, length: int) -> Samples:
    """Return the first `length` places of each text (or of its labels); they hold all of it."""
    return np.ascontiguousarray(samples[:, :length])
