"""Shards of a source and the order of samples: both from counter-based bits, equal in every process and numpy version."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from heron_common.directions import PerturbationSeed, derive_seed, raw_words
from heron_common.errors import ConfigurationError, DataError
from heron_common.ids import RoundReference
from heron_common.tensors import Int64Array

_SHARD_SEED = PerturbationSeed(0x5348415244, 1)


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Read `0/4`.

    Raises:
        ConfigurationError: it is not INDEX/COUNT with 0 <= INDEX < COUNT.

    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigurationError(f"a shard is written INDEX/COUNT with INDEX from 0 to COUNT-1, like 0/4, not {text!r}")
    return Shard(int(match[1]), int(match[2]))


def shard_rows(num_examples: int, shard: Shard) -> Int64Array:
    """Return the rows of one shard: every count-th of one fixed random order, so shards are disjoint, cover all and are alike (IID).

    Raises:
        DataError: there are fewer samples than shards.

    """
    if num_examples < shard.count:
        raise DataError(f"shard {shard} of {num_examples} samples would be empty: use at most {num_examples} shards")
    return permutation(_SHARD_SEED, num_examples)[shard.index :: shard.count]


def permutation(seed: PerturbationSeed, count: int) -> Int64Array:
    """Return a permutation of range(count): the order of `count` raw 64-bit words."""
    order: Int64Array = np.argsort(raw_words(seed, count), kind="stable").astype(np.int64)
    return order


class SampleOrder:
    """Which samples a client takes at each local step of one attempt at a round.

    Permutations of the shard one after the other, cut into batches: every batch is full and each sample comes once before any comes twice.
    """

    def __init__(self, run_seed: int, client_id: str, round_reference: RoundReference, num_examples: int, batch_size: int) -> None:
        self._arguments = (run_seed, client_id, round_reference)
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._epochs: dict[int, Int64Array] = {}

    def indices(self, local_step: int) -> Int64Array:
        """Return [batch_size] indices into the shard."""
        first = local_step * self._batch_size
        positions = np.arange(first, first + self._batch_size)
        epochs, within = np.divmod(positions, self._num_examples)
        wanted = [int(epoch) for epoch in np.unique(epochs)]
        self._epochs = {epoch: self._epochs[epoch] if epoch in self._epochs else self._epoch(epoch) for epoch in wanted}
        return np.array([self._epochs[int(e)][w] for e, w in zip(epochs, within, strict=True)], np.int64)

    def _epoch(self, epoch: int) -> Int64Array:
        run_seed, client_id, round_reference = self._arguments
        return permutation(derive_seed(run_seed, client_id, round_reference, "sample_order", epoch), self._num_examples)
