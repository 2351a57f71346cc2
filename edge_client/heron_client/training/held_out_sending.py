"""A client's part in federated evaluation: activations of held-out samples go up before the first local step, from the weights that the round starts with."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from heron_client.network.upload import Upload, UploadRequest
from heron_client.network.upload_pipeline import UploadPipeline
from heron_client.training.local_training import HeldOutSamples, LocalContext
from heron_client.training.passes import ACTIVATIONS, LABELS, MASK, Batch
from heron_common.algorithm.payload_shapes import evaluation_specs
from heron_common.data.batch_order import Draw
from heron_common.data.shard_split import evaluation_batches
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.directions import derive_seed
from heron_common.numerics.tensors import Float32Array, raw_bytes
from heron_common.numerics.wire_dtypes import encode_rows
from heron_common.protocol.messages import Assignment, UploadPurpose
from heron_common.specification.text_lengths import of_length

log = logging.getLogger(__name__)

_SKIPPED = {ErrorCode.NON_FINITE, ErrorCode.UNEXPECTED_UPLOAD}
"""Refusals of a batch that training goes on without: whether its own values are finite it finds out itself; after a restart the server may be past scoring."""


def send_held_out(context: LocalContext, assignment: Assignment, pipeline: UploadPipeline) -> None:
    """Upload this round's batches of held-out samples, one after the other; moves neither weights nor running statistics.

    Where a model normalises by the batch, held-out samples are normalised by theirs, as samples in training are.

    Raises:
        HeronError: see `UploadPipeline.send`.

    """
    held_out, plan = context.held_out, assignment.plan
    if held_out is None:
        return
    for index, drawn in enumerate(
        evaluation_batches(held_out.num_examples, plan.batch_size, max_batches=held_out.max_batches, lengths=held_out.lengths)
    ):
        count = len(drawn.indices)
        specs = evaluation_specs(plan, of_length(context.model, drawn.length), count)
        request = UploadRequest(assignment.round, UploadPurpose.EVALUATE, local_step=index, num_probes=0, tensors=specs)
        batch = _padded_batch(held_out, drawn, plan.batch_size)
        stream = partial(_stream, context=context, assignment=assignment, index=index, count=count, batch=batch)
        try:
            pipeline.send(request, stream)
            pipeline.settle()
        except RefusedError as exc:
            if exc.code not in _SKIPPED:
                raise
            pipeline.abort()
            log.warning("a batch of held-out samples is not scored", extra={"batch": index, "reason": exc.sentence})


def _padded_batch(held_out: HeldOutSamples, drawn: Draw, batch_size: int) -> Batch:
    """Read a batch, short ones filled up by their own samples over again: programs take whole micro-batches; what fills up stays here."""
    wanted = np.resize(drawn.indices, batch_size)
    return Batch(*held_out.read_batch(wanted, drawn.length), drawn.length)


def _stream(upload: Upload, *, context: LocalContext, assignment: Assignment, index: int, count: int, batch: Batch) -> Float32Array:
    """Compute and write one upload of the first `count` samples of a batch; the same call makes the same bytes again for a retry."""
    plan, program = assignment.plan, context.activation_program(batch.length)
    noise = derive_seed(context.run_seed, context.client_id, round_reference=assignment.round, purpose="quantise_held_out", index=index)
    context.parameters.show_base()
    for start in range(0, count, plan.micro_batch):
        part = slice(start, start + plan.micro_batch)
        program.run(batch.x[part], batch.y[part])
        rows = program.activations[: count - start]
        upload.write(ACTIVATIONS, encode_rows(rows, plan.wire_dtype, noise_seed=noise, first_row=start))
    upload.write(LABELS, raw_bytes(batch.y[:count]))
    if context.model.context:
        upload.write(MASK, raw_bytes((batch.x[:count] >= 0).astype(np.uint8)))
    upload.finish()
    return np.zeros(0, np.float32)
