"""Digests of what a user's model computes, by its operations and by the source of all code of the user's that it may call."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from pathlib import Path

from torch import fx, nn

from heron_server.models.split_model import SplitModel

_SCHEME = "2:"
"""How digests begin that are comparable; runs of version 0.1 have others."""

_STANDARD_LIBRARY = Path(ast.__file__).resolve().parent

_INSTALLED = {"site-packages", "dist-packages"}


def code_digest(model: SplitModel, whole: nn.Module | None) -> str:
    """Return a digest of what front and back compute; comments do not count.

    `whole` is given where submodules of it stay whole: then all source counts that its classes lead to, helper functions and imported modules included.
    """
    digest = hashlib.sha256(fingerprint(model.front, model.back).encode())
    for source in _sources(whole) if whole is not None else ():
        digest.update(source.encode())
    return _SCHEME + digest.hexdigest()


def comparable(one: str, other: str) -> bool:
    """Return whether two digests were made in the same way, so that a difference says something."""
    return one.startswith(_SCHEME) and other.startswith(_SCHEME)


def fingerprint(*modules: nn.Module) -> str:
    """Return a digest of what modules are made of but the weights: operations, settings of layers, constants."""
    digest = hashlib.sha256()
    for module in modules:
        for name, part in module.named_modules():
            settings = {k: v for k, v in vars(part).items() if isinstance(v, int | float | str | tuple | list | None)}
            digest.update(f"{name} {type(part).__qualname__} {sorted(settings.items(), key=str)}".encode())
            if isinstance(part, fx.GraphModule):
                digest.update(part.code.encode())
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest.update(f"{name} {list(tensor.shape)} {tensor.requires_grad}".encode())
        for _, buffer in module.named_buffers():
            digest.update(buffer.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _sources(whole: nn.Module) -> list[str]:
    """Return the code of every file of the user's that the classes of a model, and what these files name, come from; classes may have no file."""
    pending = {type(module).__module__ for module in whole.modules()}
    seen: set[str] = set()
    found: dict[str, str] = {}
    while pending:
        name = pending.pop()
        module, new = sys.modules.get(name), name not in seen
        seen.add(name)
        path = getattr(module, "__file__", None)
        if not new or not isinstance(path, str) or not _is_the_users(name, path):
            continue
        found[name] = _without_comments(Path(path))
        for value in list(vars(module).values()):
            origin = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            if isinstance(origin, str):
                pending.add(origin)
    return [f"{name} {text}" for name, text in sorted(found.items())]


def _is_the_users(name: str, path: str) -> bool:
    place = Path(path).resolve()
    installed = place.is_relative_to(_STANDARD_LIBRARY) or not _INSTALLED.isdisjoint(place.parts)
    return path.endswith(".py") and not installed and not name.startswith("heron_")


def _without_comments(path: Path) -> str:
    try:
        return ast.dump(ast.parse(path.read_bytes()))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
