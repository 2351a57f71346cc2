"""The state of torch's generators, from which dropout in back and head is drawn."""

from __future__ import annotations

import torch

_RANDOM_CPU, _RANDOM_CUDA = "random.cpu", "random.cuda"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return it as byte tensors by name."""
    states = {_RANDOM_CPU: torch.get_rng_state()}
    return states | ({_RANDOM_CUDA: torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def load_random_state(tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set torch's generators to a state that `random_state` returned; a device without a state of its own keeps what it has."""
    if _RANDOM_CPU in tensors:
        torch.set_rng_state(tensors[_RANDOM_CPU].clone())
    if _RANDOM_CUDA in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors[_RANDOM_CUDA].clone(), device)
