"""From spooled uploads to batches: decode the wire dtype, and mix the uploads of one step where the schedule asks for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.algorithm.payload_shapes import upload_specs
from heron_common.algorithm.plan import Plan
from heron_common.data.partition import permutation
from heron_common.numerics.directions import PerturbationSeed
from heron_common.numerics.tensors import Float32Array, Int64Array, TensorSpec, Uint8Array, decode
from heron_common.numerics.wire_dtypes import WireDtype, decode_rows
from heron_common.specification.data_specification import IGNORED
from heron_common.specification.model_spec import ModelSpec
from heron_common.specification.text_lengths import of_length
from heron_server.rounds.accepted import AcceptedUpload

_PIECE_VALUES = 1 << 18
"""Values that are squared at a time: 2 MiB in float64, within a core's cache."""


@dataclass(frozen=True)
class DecodedUpload:
    """Activations [(1 + probes) * B, *cut], labels [B, ...] and, of sequences, the mask of their tokens [B, T] of one upload."""

    activations: Float32Array
    labels: npt.NDArray[Any]
    mask: Uint8Array | None = None

    def copy(self) -> DecodedUpload:
        """Return one that does not share memory with the spool's buffer."""
        return DecodedUpload(self.activations.copy(), self.labels.copy(), None if self.mask is None else self.mask.copy())

    def level(self) -> float:
        """Return the root mean square of the base activations."""
        flat = self.activations[: len(self.labels)].reshape(-1)
        # Piece by piece: a copy of all in float64 would be twice the upload again.
        pieces = (flat[start : start + _PIECE_VALUES] for start in range(0, flat.size, _PIECE_VALUES))
        return math.sqrt(sum(float(np.square(piece, dtype=np.float64).sum()) for piece in pieces) / flat.size)

    def padded(self, length: int) -> DecodedUpload:
        """Return the same with texts of a greater length: no part of a model reads activations where the mask says that there is no token."""
        missing = length - (length if self.mask is None else self.mask.shape[1])
        if missing == 0:
            return self

        def behind(array: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
            return np.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2), constant_values=value)

        has_label_for_each = self.labels.dtype == np.int64 and self.labels.ndim > 1
        labels = behind(self.labels, IGNORED) if has_label_for_each else self.labels
        return DecodedUpload(behind(self.activations, 0), labels, None if self.mask is None else behind(self.mask, 0))


def padded_alike(uploads: Sequence[DecodedUpload]) -> list[DecodedUpload]:
    """Return uploads whose texts all have the greatest of their lengths."""
    length = max((upload.mask.shape[1] for upload in uploads if upload.mask is not None), default=0)
    return [upload if upload.mask is None else upload.padded(length) for upload in uploads]


@dataclass(frozen=True)
class MixedBatch:
    """A batch of rows from several uploads; `sources[i]` is the upload that row i came from."""

    rows: DecodedUpload
    sources: Int64Array


def decode_upload(upload: AcceptedUpload, plan: Plan, model: ModelSpec) -> DecodedUpload:
    """Read an upload from the spool."""
    return decode_tensors(upload, upload_specs(plan, of_length(model, upload.length)), plan.wire_dtype)


def decode_tensors(upload: AcceptedUpload, specs: tuple[TensorSpec, ...], wire_dtype: WireDtype) -> DecodedUpload:
    """Read an upload of these tensors from the spool."""
    activations, *beside = specs
    data = memoryview(upload.payload().read())
    rows = decode_rows(data[: activations.size_bytes], wire_dtype, activations.shape)
    tensors, start = [], activations.size_bytes
    for spec in beside:
        tensors.append(decode(data[start : start + spec.size_bytes], spec))
        start += spec.size_bytes
    return DecodedUpload(rows, *tensors)


def mixed_batches(uploads: Sequence[DecodedUpload], seed: PerturbationSeed) -> list[MixedBatch]:
    """Deal the rows of several uploads of one size into as many batches of that size, each with rows of all of them, in an order drawn from `seed`.

    Shorter texts are padded to the longest of all, which changes none of their losses.
    """
    uploads = padded_alike(uploads)
    batch_size = len(uploads[0].labels)
    order = permutation(seed, batch_size * len(uploads))
    # Row i of the shuffled whole is dealt to batch i mod n after a stable sort by source, so that every upload has its share in every batch.
    dealt = order[np.argsort(order // batch_size, kind="stable")]
    activations = np.concatenate([upload.activations for upload in uploads])
    labels = np.concatenate([upload.labels for upload in uploads])
    masks = [upload.mask for upload in uploads if upload.mask is not None]
    mask = np.concatenate(masks) if masks else None
    shares = [dealt[k :: len(uploads)] for k in range(len(uploads))]
    return [
        MixedBatch(DecodedUpload(activations[rows], labels[rows], None if mask is None else mask[rows]), rows // batch_size)
        for rows in shares
    ]
