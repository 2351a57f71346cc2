"""Which samples of a client's own shard are kept from training, so that the model can be scored where the data are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heron_common.data.batch_order import Draw
from heron_common.data.partition import permutation
from heron_common.ids import RoundReference
from heron_common.numerics.directions import derive_seed
from heron_common.numerics.tensors import Int64Array

_ALL_ROUNDS = RoundReference(0, 0)
"""The same samples are held out in every round and attempt, or the model would be scored on what it was trained on."""


class ShardSplit(NamedTuple):
    """Indices into a shard: what is trained on, in the shard's own order, and what is held out, in the order in which it is evaluated."""

    training: Int64Array
    held_out: Int64Array


def split_shard(run_seed: int, client_id: str, *, num_examples: int, fraction: float) -> ShardSplit:
    """Divide a client's samples: a function of its arguments, so that every process of a run holds out the same.

    The share is rounded down, but at least one sample is held out and one is left: of a single sample nothing is held out.
    """
    if fraction <= 0 or num_examples < 2:
        return ShardSplit(np.arange(num_examples), np.zeros(0, np.int64))
    # 0.29 * 100 is a little less than 29 in binary, and must not become 28.
    count = min(num_examples - 1, max(1, int(fraction * num_examples + 1e-9)))
    order = permutation(derive_seed(run_seed, client_id, round_reference=_ALL_ROUNDS, purpose="held_out", index=0), num_examples)
    return ShardSplit(np.sort(order[count:]), order[:count])


def evaluation_batches(num_held_out: int, batch_size: int, *, max_batches: int, lengths: Int64Array | None = None) -> list[Draw]:
    """Return the batches of held-out samples that go up in each round, those of `evaluation_rows`; where texts have several lengths in order of these.

    Each batch is then of its longest text's length: whatever the lengths are, the same samples count, in as many batches.
    """
    slices = evaluation_rows(num_held_out, batch_size, max_batches)
    if lengths is None:
        return [Draw(np.arange(rows.start, rows.stop), 0) for rows in slices]
    order = np.argsort(lengths[: slices[-1].stop if slices else 0], kind="stable")
    return [Draw(order[rows], int(lengths[order[rows.stop - 1]])) for rows in slices]


def evaluation_rows(num_held_out: int, batch_size: int, max_batches: int) -> list[slice]:
    """Return which held-out samples go up in each round: the first `max_batches` batches, the last of which may be short; each sample counts once."""
    end = min(num_held_out, batch_size * max_batches)
    return [slice(start, min(start + batch_size, end)) for start in range(0, end, batch_size)]
