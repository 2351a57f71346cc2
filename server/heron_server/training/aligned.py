"""Arrays as tensors at addresses that never change what is computed.

Vectorised sums begin with what lies before the first aligned address, so that the same numbers at another address are added in another order and
differ in their last bits. torch's own memory begins at a multiple of 64 bytes; numpy's, and a buffer that a file was read into, begin anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

ALIGNMENT_BYTES = 64


def aligned_tensor(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on a device; on the CPU it is copied unless it begins at a multiple of ALIGNMENT_BYTES."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu" and tensor.data_ptr() % ALIGNMENT_BYTES:
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.to(device)
