"""From spooled uploads to batches: decode the wire dtype, and mix the uploads of one step where the schedule asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heron_common.assignment import ModelSpec, upload_specs
from heron_common.data.partition import permutation
from heron_common.directions import PerturbationSeed
from heron_common.plan import Plan
from heron_common.tensors import Float32Array, Int64Array, decode
from heron_common.wire_dtypes import decode_rows
from heron_server.rounds.attempt import AcceptedUpload


@dataclass(frozen=True)
class DecodedUpload:
    """Activations [(1 + probes) * B, *cut] and labels [B] of one upload."""

    activations: Float32Array
    labels: Int64Array


@dataclass(frozen=True)
class MixedBatch:
    """A batch of rows from several uploads; `sources[i]` is the upload that row i came from."""

    activations: Float32Array
    labels: Int64Array
    sources: Int64Array


def decode_upload(upload: AcceptedUpload, plan: Plan, model: ModelSpec) -> DecodedUpload:
    """Read an upload from the spool."""
    activations, labels = upload_specs(plan, model)
    data = memoryview(upload.entry.read())
    rows = decode_rows(data[: activations.size_bytes], plan.wire_dtype, activations.shape)
    return DecodedUpload(rows, decode(data[activations.size_bytes :], labels))


def mixed_batches(uploads: Sequence[DecodedUpload], seed: PerturbationSeed) -> list[MixedBatch]:
    """Deal the rows of several uploads of one size into as many batches of that size, each with rows of all of them, in an order drawn from `seed`."""
    batch_size = len(uploads[0].labels)
    order = permutation(seed, batch_size * len(uploads))
    # Row i of the shuffled whole is dealt to batch i mod n after a stable sort by source, so that every upload has its share in every batch.
    dealt = order[np.argsort(order // batch_size, kind="stable")]
    activations = np.concatenate([upload.activations for upload in uploads])
    labels = np.concatenate([upload.labels for upload in uploads])
    count = len(uploads)
    return [MixedBatch(activations[dealt[k::count]], labels[dealt[k::count]], dealt[k::count] // batch_size) for k in range(count)]
