"""Shards of a source and the order of samples: both from counter-based bits, equal in every process and numpy version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np

from heron_common.data.dirichlet import dirichlet
from heron_common.errors import ConfigurationError, DataError
from heron_common.ids import RoundReference
from heron_common.numerics.directions import PerturbationSeed, derive_seed, raw_words
from heron_common.numerics.tensors import Int64Array

_SHARD_SEED = PerturbationSeed(0x5348415244, 1)
_DEAL_SEED = PerturbationSeed(0x5348415244, 2)
_SIZES_SEED = PerturbationSeed(0x5348415244, 3)
# The second number is the place of the label among those that occur.
_LABEL_KEY = 0x4C4142454C

_ALPHA_RANGE = (0.001, 1e6)


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


class PartitionKind(StrEnum):
    """How samples are distributed over clients."""

    IID = "iid"
    DIRICHLET = "dirichlet"
    LABELS = "labels"
    SIZES = "sizes"


@dataclass(frozen=True)
class Partition:
    """A kind with its number: ALPHA of a Dirichlet distribution, or how many label shards each client gets."""

    kind: PartitionKind = PartitionKind.IID
    number: float = 0.0

    def __str__(self) -> str:
        return self.kind.value if self.kind is PartitionKind.IID else f"{self.kind.value}:{repr(self.number).removesuffix('.0')}"

    @property
    def uses_labels(self) -> bool:
        """Whether labels decide about shards; otherwise only their number does."""
        return self.kind in (PartitionKind.DIRICHLET, PartitionKind.LABELS)


def parse_partition(text: str) -> Partition:
    """Read `iid`, `dirichlet:ALPHA`, `labels:K` or `sizes:ALPHA`.

    Raises:
        ConfigurationError: it is none of these, or its number is out of range.

    """
    if text == "iid":
        return Partition()
    if match := re.fullmatch(r"labels:([1-9][0-9]{0,8})", text):
        return Partition(PartitionKind.LABELS, float(match[1]))
    match = re.fullmatch(r"(dirichlet|sizes):([0-9]+\.?[0-9]*(?:e[+-]?[0-9]{1,3})?|\.[0-9]+)", text)
    if match and _ALPHA_RANGE[0] <= float(match[2]) <= _ALPHA_RANGE[1]:
        return Partition(PartitionKind(match[1]), float(match[2]))
    raise ConfigurationError(
        f"a partition is written iid, dirichlet:ALPHA, labels:K or sizes:ALPHA, with ALPHA from {_ALPHA_RANGE[0]:g} to {_ALPHA_RANGE[1]:.0f} "
        f"and K from 1, like dirichlet:0.5 or labels:2, not {text!r}"
    )


def partition_rows(labels: Int64Array, partition: Partition, shard: Shard) -> Int64Array:
    """Return the rows of one client; the shards of all clients are disjoint, cover all rows, and none is empty.

    `iid` is `shard_rows`. `dirichlet` deals each label's samples to the clients in proportions of their own (Yurochkin et al. 2019).
    `labels` sorts by label and deals K contiguous pieces to each client (McMahan et al. 2017). `sizes` is iid in content, not in number.

    Raises:
        DataError: there are fewer samples than clients, or than pieces to deal.

    """
    iid = shard_rows(len(labels), shard)
    if partition.kind is PartitionKind.IID:
        return iid
    base, clients = _dealt(labels, partition, shard)
    rows: Int64Array = base[clients == shard.index]
    return rows


def partition_all(labels: Int64Array, partition: Partition, num_clients: int) -> list[Int64Array]:
    """Return what `partition_rows` returns for each of the clients, dealt once."""
    first = Shard(0, num_clients)
    # Too few samples are refused whatever the kind.
    shard_rows(len(labels), first)
    if partition.kind is PartitionKind.IID:
        order = permutation(_SHARD_SEED, len(labels))
        return [order[index::num_clients] for index in range(num_clients)]
    base, clients = _dealt(labels, partition, first)
    sizes = np.bincount(clients, minlength=num_clients)
    return np.split(base[np.argsort(clients, kind="stable")], np.cumsum(sizes)[:-1])


def _dealt(labels: Int64Array, partition: Partition, shard: Shard) -> tuple[Int64Array, Int64Array]:
    """Return all rows in one fixed random order, and the client of each; in that order each client takes its own."""
    base = permutation(_SHARD_SEED, len(labels))
    if partition.kind is PartitionKind.DIRICHLET:
        clients = _label_proportions(labels[base], partition.number, shard.count)
    elif partition.kind is PartitionKind.LABELS:
        clients = _label_pieces(labels[base], int(partition.number), shard)
    else:
        clients = _split(len(base), dirichlet(_SIZES_SEED, partition.number, shard.count))
    _fill_empty(clients, shard.count)
    return base, clients


def _split(num_rows: int, proportions: list[float]) -> Int64Array:
    """Return the client of each of `num_rows` rows, cut into contiguous pieces of the given proportions."""
    ends = (np.cumsum(proportions) * num_rows).astype(np.int64)
    # The sum may round to just below one; no row is lost for that.
    ends[-1] = num_rows
    return np.repeat(np.arange(len(proportions)), np.diff(ends, prepend=0))


def _label_proportions(labels: Int64Array, alpha: float, num_clients: int) -> Int64Array:
    clients = np.empty(len(labels), np.int64)
    for place, label in enumerate(np.unique(labels)):
        of_label = np.flatnonzero(labels == label)
        clients[of_label] = _split(len(of_label), dirichlet(PerturbationSeed(_LABEL_KEY, place), alpha, num_clients))
    return clients


def _label_pieces(labels: Int64Array, pieces_per_client: int, shard: Shard) -> Int64Array:
    num_pieces = shard.count * pieces_per_client
    if num_pieces > len(labels):
        raise DataError(
            f"partition labels:{pieces_per_client} of {shard.count} clients needs at least {num_pieces} samples, but there are {len(labels)}: "
            f"use labels:{len(labels) // shard.count} or fewer clients"
        )
    by_label = np.argsort(labels, kind="stable")
    pieces = np.arange(len(labels)) * num_pieces // len(labels)
    clients = np.empty(len(labels), np.int64)
    clients[by_label] = permutation(_DEAL_SEED, num_pieces)[pieces] // pieces_per_client
    return clients


def _fill_empty(clients: Int64Array, num_clients: int) -> None:
    """Give each client without a row the last one of the client that has most; there are at least as many rows as clients."""
    sizes = np.bincount(clients, minlength=num_clients)
    for empty in np.flatnonzero(sizes == 0):
        largest = int(np.argmax(sizes))
        clients[np.flatnonzero(clients == largest)[-1]] = empty
        sizes[largest] -= 1
        sizes[empty] = 1


def permutation(seed: PerturbationSeed, count: int) -> Int64Array:
    """Return a permutation of range(count): the order of `count` raw 64-bit words."""
    order: Int64Array = np.argsort(raw_words(seed, count), kind="stable").astype(np.int64)
    return order


class SampleOrder:
    """Which samples a client takes at each local step of one attempt at a round.

    Permutations of the shard one after the other, cut into batches: every batch is full and each sample comes once before any comes twice.
    """

    def __init__(
        self,
        run_seed: int,
        client_id: str,
        *,
        round_reference: RoundReference,
        num_examples: int,
        batch_size: int,
        purpose: str = "sample_order",
    ) -> None:
        """`purpose` keeps the orders of several groups of samples apart."""
        self._epoch_seed = partial(derive_seed, run_seed, client_id, round_reference=round_reference, purpose=purpose)
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._epochs: dict[int, Int64Array] = {}

    def indices(self, local_step: int) -> Int64Array:
        """Return [batch_size] indices into the shard."""
        first, size = local_step * self._batch_size, self._num_examples
        end = first + self._batch_size
        wanted = range(first // size, (end - 1) // size + 1)
        self._epochs = {epoch: self._epochs[epoch] if epoch in self._epochs else self._epoch(epoch) for epoch in wanted}
        return np.concatenate([order[max(0, first - epoch * size) : end - epoch * size] for epoch, order in self._epochs.items()])

    def _epoch(self, epoch: int) -> Int64Array:
        return permutation(self._epoch_seed(index=epoch), self._num_examples)
