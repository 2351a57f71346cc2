"""The flat buffer: views without copies, and blocks that cover every weight exactly once whatever the tensors' sizes."""

from __future__ import annotations

import numpy as np
import pytest

from heron_common.numerics.layout import BLOCK, FlatLayout, spread
from heron_common.numerics.tensors import DType, TensorSpec


def layout_of(*shapes: tuple[int, ...]) -> FlatLayout:
    return FlatLayout(tuple(TensorSpec(f"t{i}", DType.FLOAT32, shape) for i, shape in enumerate(shapes)))


def test_views_are_shaped_and_write_through_to_the_flat_buffer() -> None:
    layout = layout_of((2, 3), (), (4,))
    flat = np.arange(11, dtype=np.float32)
    views = layout.views(flat)
    assert [v.shape for v in views] == [(2, 3), (), (4,)]
    assert np.array_equal(np.concatenate([v.reshape(-1) for v in views]), flat)
    views[1][...] = -1.0
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, -1, 7, 8, 9, 10]


@pytest.mark.parametrize("size", [0, 10, 12])
def test_a_buffer_of_another_length_is_refused_with_both_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=rf"11 weights, got shape \({size},\)"):
        layout_of((2, 3), (5,)).views(np.zeros(size, np.float32))


@pytest.mark.parametrize(
    "shapes",
    [
        ((1,),),
        ((BLOCK,),),
        ((BLOCK + 1,),),
        ((BLOCK - 1,), (1,), (1,)),
        ((3,), (BLOCK, 2), (7,), (BLOCK - 10,)),
        tuple((9,) for _ in range(40)),
    ],
    ids=["one", "a-block", "a-block-and-one", "boundary", "mixed", "many-small"],
)
def test_blocks_name_every_weights_tensor_exactly_once(shapes: tuple[tuple[int, ...], ...]) -> None:
    layout = layout_of(*shapes)
    owners = np.concatenate([np.full(s.num_elements, i) for i, s in enumerate(layout.specs)])
    walked = np.concatenate([np.repeat(b.tensors, b.lengths) for b in layout.blocks])
    assert np.array_equal(walked, owners)
    edges = [(b.start, b.stop) for b in layout.blocks]
    assert [start for start, _ in edges] == list(range(0, layout.num_parameters, BLOCK))
    assert edges[-1][1] == layout.num_parameters
    assert all(int(b.lengths.sum()) == b.stop - b.start and int(b.lengths.min()) > 0 for b in layout.blocks)


def test_a_layout_without_tensors_has_no_blocks() -> None:
    layout = layout_of()
    assert (layout.num_parameters, layout.blocks, layout.views(np.zeros(0, np.float32))) == (0, (), [])


def test_spread_repeats_one_value_per_tensor_over_its_weights() -> None:
    layout = layout_of((BLOCK - 1,), (3,), (2,))
    per_weight = np.concatenate([spread(np.float32([1, 2, 3]), block) for block in layout.blocks])
    assert np.array_equal(per_weight, np.repeat(np.float32([1, 2, 3]), (BLOCK - 1, 3, 2)))
