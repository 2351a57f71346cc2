"""Copies of a user's modules to run and trace, and generators put back: what was tried leaves no mark on the model that is trained."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from heron_common.errors import ConfigurationError

T = TypeVar("T")


def copied(value: T) -> T:
    """Return a copy of a module, or of a mapping that holds modules, which shares no tensor with it.

    Raises:
        ConfigurationError: something in it cannot be copied.

    """
    parts = list(value.values()) if isinstance(value, dict) else [value]
    memo: dict[int, object] = {}
    for module in (inner for part in parts if isinstance(part, nn.Module) for inner in part.modules()):
        for held in (*vars(module).values(), *module._buffers.values()):
            # As weight_norm keeps its product: torch copies only tensors that it did not compute.
            if isinstance(held, torch.Tensor) and not held.is_leaf:
                memo[id(held)] = held.detach().clone()
    try:
        return copy.deepcopy(value, memo)
    except Exception as exc:
        first = (str(exc).strip().splitlines() or ["no message"])[0]
        raise ConfigurationError(
            f"the model cannot be copied ({type(exc).__name__}: {first[:200]}): keep files, locks and the like outside of its modules"
        ) from exc


@contextmanager
def generators_kept(seed: int | None = None) -> Iterator[None]:
    """Put the random generators of torch, numpy and Python back to where they were; inside they begin at `seed`, or go on."""
    own, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)


def drawn_so_far() -> tuple[object, ...]:
    """Return where the generators are: two values are equal if nothing was drawn between them."""
    _, keys, position, *_ = np.random.get_state()
    return random.getstate(), np.asarray(keys).tobytes(), position, bytes(torch.get_rng_state().numpy())
