"""A module that a Python program hands over as an object: the name that a run's record has for it, by structure and weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from heron_common.errors import ConfigurationError
from heron_server.models.copies import copied

PREFIX = "object:"

_SHOWN = 16


def name_of(module: nn.Module) -> str:
    """Return `object:CLASS:DIGEST`; the digest is of layers, their settings and modes, and of every parameter and buffer.

    Raises:
        ConfigurationError: a lazy layer has no weights yet.

    """
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    if lazy := sorted(name for name, tensor in tensors.items() if is_lazy(tensor)):
        raise ConfigurationError(
            f"the module has lazy layers without weights ({', '.join(lazy)}): run it on a batch once, then hand it over"
        )
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        settings = {key: value for key, value in vars(part).items() if isinstance(value, int | float | str | tuple | list | None)}
        digest.update(f"{name} {type(part).__qualname__} {sorted(settings.items(), key=str)}".encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {tensor.requires_grad}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{PREFIX}{type(module).__name__}:{digest.hexdigest()[:_SHOWN]}"


def given_module(family: str, module: nn.Module | None) -> nn.Module:
    """Return a copy of the module that a name stands for; the one that was handed over stays as it is.

    Raises:
        ConfigurationError: none was handed over, or another one, or it cannot be copied.

    """
    if module is None:
        raise ConfigurationError(
            f"model {family!r} was handed over as an object from Python, and no command can build it: "
            "use heron.open_run(RUN_DIR, model=...) there, and its export(), model() or report()"
        )
    if (name := name_of(module)) != family:
        raise ConfigurationError(
            f"the module that was handed over is {name!r}, but the run began with {family!r}: give the same module with its first weights"
        )
    return copied(module)
