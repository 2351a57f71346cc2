"""What a program will compute, by its own operations: the key under which it is cached, wherever the code lies that says so."""

from __future__ import annotations

import hashlib
import logging

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from heron_server.models.copies import generators_kept
from heron_server.programs.compile import CompiledFunction

log = logging.getLogger(__name__)


def signature(function: CompiledFunction) -> str | None:
    """Return a digest of a function's operations, constants and shapes, as torch dispatches them; None where they cannot be had."""
    try:
        with generators_kept(), sdpa_kernel(SDPBackend.MATH):
            traced = make_fx(function.module)(*function.arguments)
    except Exception as exc:
        # The export will say what is wrong, if anything is.
        log.debug("the program has no signature", extra={"kind": function.kind.value, "reason": str(exc)})
        return None
    digest = hashlib.sha256(traced.code.encode())
    for argument in pytree.tree_leaves(function.arguments):
        digest.update(f"{list(argument.shape)} {argument.dtype}".encode())
    for node in traced.graph.find_nodes(op="get_attr"):
        value = getattr(traced, str(node.target))
        if isinstance(value, torch.Tensor):
            digest.update(f"{node.target} {list(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
