"""Batches of one length each: every sample has its share, none is lost, and the draw is a function of its arguments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heron_common.data.batch_order import BatchOrder, samples_by_length
from heron_common.data.partition import SampleOrder
from heron_common.data.shard_split import evaluation_batches, evaluation_rows
from heron_common.ids import RoundReference
from heron_common.numerics.directions import PerturbationSeed
from heron_common.numerics.tensors import Int64Array

ROUND = RoundReference(2, 1)
THREE = np.repeat([32, 64, 128], [60, 30, 10])[np.random.default_rng(0).permutation(100)]


def order(lengths: Int64Array | None = THREE, num_steps: int = 10, batch_size: int = 5, **changes: object) -> BatchOrder:
    given = {"run_seed": 1, "client_id": "ann", "round_reference": ROUND, **changes}
    count = 100 if lengths is None else len(lengths)
    return BatchOrder(num_examples=count, batch_size=batch_size, num_steps=num_steps, lengths=lengths, **given)  # type: ignore[arg-type]


def test_samples_of_one_shape_are_drawn_as_they_always_were() -> None:
    plain, alike, sample_order = (
        order(None),
        order(np.full(100, 64)),
        SampleOrder(1, "ann", round_reference=ROUND, num_examples=100, batch_size=5),
    )
    for step in range(10):
        expected = sample_order.indices(step).tolist()
        assert (plain.draw(step).indices.tolist(), plain.draw(step).length) == (expected, 0)
        assert (alike.draw(step).indices.tolist(), alike.draw(step).length) == (expected, 64)


def test_every_batch_is_full_and_of_one_length() -> None:
    some = order(num_steps=40)
    for step in range(40):
        indices, length = some.draw(step)
        assert indices.shape == (5,) and len(set(indices.tolist())) == 5
        assert (THREE[indices] == length).all()


@pytest.mark.parametrize("num_steps", [20, 40])
def test_an_epoch_uses_each_sample_once(num_steps: int) -> None:
    some = order(num_steps=num_steps)
    used = np.bincount(np.concatenate([some.draw(step).indices for step in range(num_steps)]), minlength=100)
    assert used.tolist() == [num_steps // 20] * 100, "20 batches of 5 are 100 samples, and 60, 30 and 10 are whole batches"


@pytest.mark.parametrize("num_steps", [1, 3, 7, 20, 33])
def test_in_a_round_each_length_has_its_share_of_steps_to_within_one(num_steps: int) -> None:
    for attempt in range(20):
        some = order(num_steps=num_steps, round_reference=RoundReference(0, attempt))
        drawn = [some.draw(step).length for step in range(num_steps)]
        counts = {length: drawn.count(length) for length in (32, 64, 128)}
        assert sum(a != b for a, b in itertools.pairwise(drawn)) <= 3, "steps of a length follow each other"
        for length, share in ((32, 0.6), (64, 0.3), (128, 0.1)):
            assert abs(counts[length] - share * num_steps) < 1


def test_over_rounds_every_sample_is_used_equally_often_at_every_step() -> None:
    rounds, steps = 1000, 3
    used = np.zeros((steps, 100), np.int64)
    for index in range(rounds):
        some = order(num_steps=steps, round_reference=RoundReference(index, 0))
        for step in range(steps):
            used[step, some.draw(step).indices] += 1
    # Of 1000 rounds a sample is in a step's batch with p = 5 / 100; the largest of 300 binomials is within five standard deviations.
    assert np.abs(used - rounds * 0.05).max() < 5 * np.sqrt(rounds * 0.05 * 0.95)
    # All samples of the rarest length together, whose batches come whole: 100 of 1000 rounds.
    assert np.abs(used[:, THREE == 128].sum(1) / 5 - rounds * 0.1).max() < 5 * np.sqrt(rounds * 0.1 * 0.9)


def test_a_draw_is_a_function_of_its_arguments_and_steps_come_in_any_order() -> None:
    expected = [(draw.indices.tolist(), draw.length) for draw in map(order().draw, range(10))]
    jumping = order()
    for step in (9, 0, 4, 4, 7, 1):
        assert (jumping.draw(step).indices.tolist(), jumping.draw(step).length) == expected[step]
    others: list[dict[str, object]] = [
        {"run_seed": 2},
        {"client_id": "bob"},
        {"round_reference": RoundReference(3, 1)},
        {"round_reference": RoundReference(2, 2)},
    ]
    for change in others:
        assert [(draw.indices.tolist(), draw.length) for draw in map(order(**change).draw, range(10))] != expected


lengths_of_shards = st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1, max_size=60).map(np.array)


@settings(max_examples=200, deadline=None)
@given(lengths_of_shards, st.integers(1, 20), st.integers(0, 2**64 - 1))
def test_no_sample_is_lost_or_shortened_and_every_group_fills_a_batch(lengths: Int64Array, batch_size: int, low: int) -> None:
    groups = samples_by_length(lengths, batch_size, PerturbationSeed(low, 0))
    assert sorted(np.concatenate(list(groups.values())).tolist()) == list(range(len(lengths)))
    assert list(groups) == sorted(groups) and max(groups) == max(lengths), "and none is longer than it must be for the longest"
    assert all((lengths[rows] <= length).all() for length, rows in groups.items())
    assert len(groups) == 1 or all(len(rows) >= batch_size for rows in groups.values())
    for length, rows in groups.items():
        if len(groups) > 1 and length < max(groups):
            # Only what could not fill a batch went up.
            assert (lengths[rows] < length).sum() < batch_size


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ((25, 10, 5), {4: 25, 16: 15}),
        ((25, 10, 0), {4: 23, 8: 12}),
        ((25, 20, 3), {4: 25, 16: 23}),
        ((25, 30, 3), {4: 25, 8: 21, 16: 12}),
        ((5, 20, 3), {8: 16, 16: 12}),
        ((5, 15, 3), {16: 23}),
        ((3, 2, 1), {16: 6}),
    ],
)
def test_what_cannot_fill_a_batch_goes_up_and_the_longest_is_filled_from_below(counts: tuple[int, ...], sizes: dict[int, int]) -> None:
    groups = samples_by_length(np.repeat([4, 8, 16], counts), 12, PerturbationSeed(1, 1))
    assert {length: len(rows) for length, rows in groups.items()} == sizes


def test_who_fills_the_longest_changes_with_the_round() -> None:
    lengths = np.repeat([4, 16], [50, 2])
    filled = [set(samples_by_length(lengths, 12, PerturbationSeed(key, 1))[16].tolist()) for key in range(2)]
    assert filled[0] != filled[1] and all({50, 51} < rows and len(rows) == 12 for rows in filled)


@pytest.mark.parametrize("num_held_out", [0, 5, 8, 13, 40])
def test_held_out_texts_go_up_in_as_many_batches_as_without_lengths_and_each_counts_once(num_held_out: int) -> None:
    lengths = np.random.default_rng(1).choice([32, 64, 128], num_held_out)
    batches, slices = evaluation_batches(num_held_out, 8, max_batches=3, lengths=lengths), evaluation_rows(num_held_out, 8, 3)
    assert [len(draw.indices) for draw in batches] == [rows.stop - rows.start for rows in slices]
    drawn = [int(index) for draw in batches for index in draw.indices]
    assert sorted(drawn) == list(range(min(num_held_out, 24))), "the same samples, each once"
    assert all(draw.length == lengths[draw.indices].max() for draw in batches)
    assert [draw.length for draw in batches] == sorted(draw.length for draw in batches)
    plain = [(draw.indices.tolist(), draw.length) for draw in evaluation_batches(num_held_out, 8, max_batches=3)]
    assert plain == [(list(range(rows.start, rows.stop)), 0) for rows in slices]
