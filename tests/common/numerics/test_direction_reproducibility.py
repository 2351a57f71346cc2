"""The same seed gives the same direction in every process, for every cut of the buffer into tensors and blocks (invariant 9)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from heron_common.numerics import layout as layout_module
from heron_common.numerics.directions import DirectionDistribution, Directions, PerturbationSeed
from heron_common.numerics.layout import BLOCK, FlatLayout
from heron_common.numerics.tensors import DType, TensorSpec

ALL = list(DirectionDistribution)
SEED = PerturbationSeed(11, 2**63 + 5)
BIG = 2 * BLOCK + 777

DIGESTS = """
import hashlib
import numpy as np
from heron_common.numerics.directions import DirectionDistribution, Directions, PerturbationSeed
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import DType, TensorSpec

layout = FlatLayout((TensorSpec("a", DType.FLOAT32, (70000,)), TensorSpec("b", DType.FLOAT32, (3, 5))))
for distribution in DirectionDistribution:
    directions = Directions(PerturbationSeed(11, 2**63 + 5), distribution, layout)
    print(distribution.value, *(hashlib.sha256(directions.materialise(g).tobytes()).hexdigest() for g in (5, 0)))
"""


def layout_of(*sizes: int) -> FlatLayout:
    return FlatLayout(tuple(TensorSpec(f"t{i}", DType.FLOAT32, (size,)) for i, size in enumerate(sizes)))


@pytest.mark.process
@pytest.mark.invariant(9)
def test_another_process_derives_the_same_directions() -> None:
    environment = os.environ | {"PYTHONHASHSEED": "77", "LC_ALL": "C"}
    output = subprocess.run([sys.executable, "-c", DIGESTS], check=True, capture_output=True, text=True, env=environment).stdout
    here = []
    for distribution in ALL:
        directions = Directions(SEED, distribution, layout_of(70000, 15))
        here.append(" ".join([distribution.value, *(hashlib.sha256(directions.materialise(g).tobytes()).hexdigest() for g in (5, 0))]))
    assert output.splitlines() == here


@pytest.mark.invariant(9)
@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize(
    "sizes",
    [(BLOCK, BIG - BLOCK), (1, BIG - 1), (BLOCK - 1, 2, BIG - BLOCK - 1), (100, BLOCK, BLOCK, 677), tuple([777] + [BLOCK // 4] * 8)],
    ids=["at-the-block", "one-first", "across-the-block", "four", "nine"],
)
def test_a_direction_does_not_depend_on_how_the_buffer_is_cut_into_tensors(
    distribution: DirectionDistribution, sizes: tuple[int, ...]
) -> None:
    assert sum(sizes) == BIG
    whole = Directions(SEED, distribution, layout_of(BIG)).materialise(3)
    assert np.array_equal(Directions(SEED, distribution, layout_of(*sizes)).materialise(3), whole)


@pytest.mark.invariant(9)
@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("block", [256, 1024, 1 << 20])
def test_a_direction_does_not_depend_on_the_size_of_a_block(
    distribution: DirectionDistribution, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Directions(SEED, distribution, layout_of(5000, 3001)).materialise(1)
    monkeypatch.setattr(layout_module, "BLOCK", block)
    assert np.array_equal(Directions(SEED, distribution, layout_of(5000, 3001)).materialise(1), whole)


@pytest.mark.parametrize("distribution", [DirectionDistribution.RADEMACHER, DirectionDistribution.GAUSSIAN])
def test_a_front_alone_gets_the_beginning_of_the_direction_of_front_and_head(distribution: DirectionDistribution) -> None:
    joint = Directions(SEED, distribution, layout_of(BLOCK + 13, 500)).materialise(9)
    front = Directions(SEED, distribution, layout_of(BLOCK + 13)).materialise(9)
    assert np.array_equal(front, joint[: BLOCK + 13])


def test_a_block_walk_equals_one_uninterrupted_stream_of_bits() -> None:
    direction = Directions(SEED, DirectionDistribution.RADEMACHER, layout_of(BIG)).materialise(6)
    generator = np.random.Philox(key=np.array(SEED, np.uint64), counter=np.array([0, 6, 0, 0], np.uint64))
    words = generator.random_raw(BIG // 64 + 1)
    bits = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.array_equal(direction, 1.0 - 2.0 * bits.reshape(-1)[:BIG])


def test_many_small_steps_in_place_follow_the_naive_float32_trajectory_bit_for_bit() -> None:
    layout = layout_of(30, 34)
    directions = Directions(SEED, DirectionDistribution.RADEMACHER, layout)
    theta = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    naive = theta.copy()
    for group, coefficient in enumerate(np.random.default_rng(1).standard_normal(200)):
        magnitudes = coefficient * np.array([0.03, 0.5])
        signs = directions.materialise(group)
        directions.add(group, magnitudes, base=theta, target=theta)
        naive = naive + signs * np.repeat(magnitudes.astype(np.float32), (30, 34))
    assert theta.tobytes() == naive.tobytes()
