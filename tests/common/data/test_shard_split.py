"""Which samples a client keeps from training, and which of them a round evaluates."""

from __future__ import annotations

import numpy as np
import pytest

from heron_common.data.shard_split import evaluation_rows, split_shard


@pytest.mark.parametrize(("num_examples", "fraction"), [(100, 0.2), (7, 0.5), (2, 0.01), (3, 0.99), (1000, 0.001)])
def test_every_sample_is_either_trained_on_or_held_out_and_neither_is_empty(num_examples: int, fraction: float) -> None:
    training, held_out = split_shard(1, "a", num_examples=num_examples, fraction=fraction)
    assert sorted([*training, *held_out]) == list(range(num_examples))
    assert len(training) >= 1 and len(held_out) >= 1
    assert list(training) == sorted(training), "what is trained on keeps the shard's order"


@pytest.mark.parametrize(("num_examples", "fraction", "count"), [(100, 0.29, 29), (100, 0.0, 0), (1, 0.5, 0), (2, 0.9, 1), (10, 0.99, 9)])
def test_the_share_is_rounded_down_to_at_least_one_and_at_most_all_but_one(num_examples: int, fraction: float, count: int) -> None:
    assert len(split_shard(1, "a", num_examples=num_examples, fraction=fraction).held_out) == count


def test_seed_and_name_decide_which() -> None:
    first = split_shard(1, "a", num_examples=1000, fraction=0.1)
    assert np.array_equal(first.held_out, split_shard(1, "a", num_examples=1000, fraction=0.1).held_out)
    assert not np.array_equal(first.held_out, split_shard(2, "a", num_examples=1000, fraction=0.1).held_out)
    assert not np.array_equal(first.held_out, split_shard(1, "b", num_examples=1000, fraction=0.1).held_out)


@pytest.mark.parametrize(
    ("num_held_out", "sizes"), [(0, []), (1, [1]), (7, [7]), (8, [8]), (9, [8, 1]), (24, [8, 8, 8]), (25, [8, 8, 8]), (1000, [8, 8, 8])]
)
def test_a_round_evaluates_the_first_batches_each_sample_once(num_held_out: int, sizes: list[int]) -> None:
    rows = evaluation_rows(num_held_out, batch_size=8, max_batches=3)
    assert [part.stop - part.start for part in rows] == sizes
    assert [i for part in rows for i in range(part.start, part.stop)] == list(range(sum(sizes)))
