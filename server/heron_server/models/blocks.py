"""The blocks of a front, in the order of its submodules: found, or where the places between them were named."""

from __future__ import annotations

from torch import nn

from heron_common.errors import ConfigurationError
from heron_server.models.split_model import trained_parameters


def found_blocks(module: nn.Module, prefix: str = "") -> list[str]:
    """Return the names of a front's blocks: what has layers and weights that train; of a sequence or list of such, its members."""
    names: list[str] = []
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and any(list(member.children()) for member in child.children()):
            names += found_blocks(child, f"{prefix}{name}.")
        elif list(child.children()) and trained_parameters(child):
            names.append(prefix + name)
    if len(names) == 1:
        # A wrapper around all of them.
        within = found_blocks(module.get_submodule(names[0].removeprefix(prefix)), f"{names[0]}.")
        return within if len(within) > 1 else names
    return names


def check_blocks(front: nn.Module, blocks: tuple[str, ...]) -> None:
    """Refuse a block that is no submodule of the front.

    Raises:
        ConfigurationError: one is not; the message names the blocks that there are.

    """
    known = {name for name, _ in front.named_modules() if name}
    if unknown := [block for block in blocks if block not in known]:
        shown = ", ".join(found_blocks(front)) or ", ".join(sorted(known)[:8])
        raise ConfigurationError(f"the front has no block {unknown[0]!r}: its blocks are {shown}")


def last_block(front: nn.Module, blocks: tuple[str, ...]) -> list[str]:
    """Return the names of the weights that train from the last block on, or behind the last of `blocks`.

    Raises:
        ConfigurationError: there is no such block, none can be found, or no weight behind it trains.

    """
    check_blocks(front, blocks)
    modules = [name for name, _ in front.named_modules()]
    if blocks:
        last = blocks[-1]
        begins = 1 + max(place for place, name in enumerate(modules) if name == last or name.startswith(f"{last}."))
    elif found := found_blocks(front):
        begins = modules.index(found[-1])
    else:
        raise ConfigurationError(
            "the front has no blocks that can be found: name the place before the last one in blocks, or choose last in place of last-block"
        )
    names = [name for name, _ in trained_parameters(front) if modules.index(name.rpartition(".")[0]) >= begins]
    if not names:
        raise ConfigurationError(f"behind the block {blocks[-1]!r} the front has no weight that trains: name an earlier one in blocks")
    return names
