"""Which samples a client takes at each local step, and at which length: every batch is of one length, every sample has the same expected share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heron_common.data.partition import SampleOrder, permutation
from heron_common.ids import RoundReference
from heron_common.numerics.directions import PerturbationSeed, derive_seed, raw_words
from heron_common.numerics.tensors import Int64Array


class Draw(NamedTuple):
    """The samples of one batch, [batch_size] indices into the shard, and the length that their texts are padded to, 0 where all have one shape."""

    indices: Int64Array
    length: int


class BatchOrder:
    """The batches of one attempt at a round.

    Where samples have one shape this is `SampleOrder`. Otherwise each length has such an order over its own samples, and of h steps a length with n_l of
    the n samples gets h n_l / n, rounded up or down: with one uniform number u, step t takes the length of the sample at t / h + u, modulo 1, of all
    samples sorted by length (systematic sampling). Each step taken by itself is of a length with probability n_l / n, so that every sample has the same
    expected number of uses. Steps of a length follow each other, for a device holds one length's programs at a time; which comes first is drawn.
    """

    def __init__(
        self,
        run_seed: int,
        client_id: str,
        *,
        round_reference: RoundReference,
        num_examples: int,
        batch_size: int,
        num_steps: int,
        lengths: Int64Array | None = None,
    ) -> None:
        """`lengths` holds for each sample the smallest length that holds it, if there are several; `num_steps` is the round's local steps."""

        def seed(purpose: str) -> PerturbationSeed:
            return derive_seed(run_seed, client_id, round_reference=round_reference, purpose=purpose, index=0)

        grouped = {0: np.arange(num_examples)} if lengths is None else samples_by_length(lengths, batch_size, seed("length_fill"))
        self._lengths, self._groups = list(grouped), list(grouped.values())
        # A single group is drawn from as it would be if nobody knew of lengths.
        purposes = [f"sample_order_{length}" for length in grouped] if len(grouped) > 1 else ["sample_order"]
        self._orders = [
            SampleOrder(
                run_seed, client_id, round_reference=round_reference, num_examples=len(rows), batch_size=batch_size, purpose=purpose
            )
            for rows, purpose in zip(self._groups, purposes, strict=True)
        ]
        start = int(raw_words(seed("length_start"), 1)[0])
        self._drawn = _systematic([len(rows) for rows in self._groups], start, num_steps)

    def draw(self, local_step: int) -> Draw:
        """Return the batch of a local step; steps may be asked for in any order."""
        group = int(self._drawn[local_step])
        turn = int(np.sum(self._drawn[:local_step] == group))
        return Draw(self._groups[group][self._orders[group].indices(turn)], self._lengths[group])


def samples_by_length(lengths: Int64Array, batch_size: int, seed: PerturbationSeed) -> dict[int, Int64Array]:
    """Return the samples that are drawn at each length, ascending: disjoint, all of them, none at less than its own length, and a batch or more at each.

    A length with fewer samples than a batch leaves them to the next greater one. The greatest takes what it lacks from the next smaller one, drawn from
    `seed`, or all if less than a batch would be left there. Of fewer samples than a batch in all there is one group.
    """
    occurring = [int(length) for length in np.unique(lengths)]
    groups: dict[int, Int64Array] = {}
    rows = np.empty(0, np.int64)
    for length in occurring:
        rows = np.sort(np.concatenate([rows, np.flatnonzero(lengths == length)]))
        if len(rows) >= batch_size or length == occurring[-1]:
            groups[length] = rows
            rows = np.empty(0, np.int64)
    greatest = occurring[-1]
    missing = batch_size - len(groups[greatest])
    if missing > 0 and len(groups) > 1:
        smaller = max(length for length in groups if length < greatest)
        lender = groups.pop(smaller)
        lent = lender[permutation(seed, len(lender))[: missing if len(lender) - missing >= batch_size else len(lender)]]
        if len(lent) < len(lender):
            groups = {**groups, smaller: np.setdiff1d(lender, lent)}
        groups[greatest] = np.sort(np.concatenate([groups.pop(greatest), lent]))
    return groups


def _systematic(sizes: list[int], start: int, num_steps: int) -> Int64Array:
    """Return the group of each step: that of the element at t / num_steps + start / 2^64, modulo 1, of all, group after group. Exact integers."""
    ends, num_examples = np.cumsum(sizes), sum(sizes)
    points = [((step << 64) // num_steps + start) % (1 << 64) for step in range(num_steps)]
    places = [(point * num_examples) >> 64 for point in points]
    return np.searchsorted(ends, np.array(places, np.int64), side="right").astype(np.int64)
