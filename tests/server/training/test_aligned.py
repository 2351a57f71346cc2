"""The same numbers give the same bits wherever they lie."""

from __future__ import annotations

import numpy as np
import torch

from heron_server.training.aligned import ALIGNMENT_BYTES, aligned_tensor

CPU = torch.device("cpu")


def at_offset(values: np.ndarray, offset_bytes: int) -> np.ndarray:  # type: ignore[type-arg]
    """Return the same values at an address that is `offset_bytes` beyond a multiple of ALIGNMENT_BYTES."""
    room = np.zeros(values.nbytes + 2 * ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES + offset_bytes
    there = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    there[:] = values
    return there


def test_a_tensor_begins_at_an_aligned_address_and_holds_the_same_numbers() -> None:
    values = np.random.default_rng(0).standard_normal((7, 13), np.float32)
    for offset in range(0, ALIGNMENT_BYTES, 4):
        tensor = aligned_tensor(at_offset(values, offset), CPU)
        assert tensor.data_ptr() % ALIGNMENT_BYTES == 0
        assert np.array_equal(tensor.numpy(), values)


def test_what_lies_right_already_is_not_copied() -> None:
    values = at_offset(np.ones(16, np.float32), 0)
    assert aligned_tensor(values, CPU).data_ptr() == values.ctypes.data
