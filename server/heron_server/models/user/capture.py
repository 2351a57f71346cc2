"""One pass of torch.fx through a model, and everything that a graph would lose on the way: it is noticed here, and what does it stays whole or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from heron_server.models.batch_norm import FrozenStatistics
from heron_server.models.copies import drawn_so_far
from heron_server.models.token_input import TokenInput
from heron_server.models.user.reasons import LostInCaptureError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")

OWN_ATTRIBUTES = ("_tensor_constant",)
"""How names begin under which fx keeps a forward's constants in the model."""


def hooks_of(module: nn.Module) -> bool:
    """Return whether something is to be called before or after a module's forward or backward pass."""
    return any(getattr(module, name, None) for name in _HOOKS)


class ModelTracer(fx.Tracer):
    """Remembers what each submodule returned, and the one that stands in the way of tracing, empty for the model itself."""

    def __init__(self, closed: dict[str, str], tokens: TokenInput | None) -> None:
        super().__init__()
        self._closed = closed
        self._tokens = tokens
        self._open: list[tuple[str, tuple[bool, ...]]] = []
        self.flattened: set[str] = set()
        self.outputs: dict[str, list[object]] = {}
        self.failed: str | None = None

    def traced(self, model: nn.Module) -> fx.Graph:
        """Return the graph of a model in its present mode; the model is marked by it, so give a copy."""
        if hooks_of(model):
            self.failed = ""
            raise LostInCaptureError("has a hook of its own (register_forward_hook and the like), which a cut model would lose")
        original = type(model)
        with torch.enable_grad(), _recorded_makers():
            self._open.append(("", _contexts()))
            before = drawn_so_far()
            model.__class__ = type(original.__name__, (original,), {"forward": _forward_of(original, self._tokens)})
            try:
                graph = self.trace(model)
            finally:
                model.__class__ = original
            if drawn_so_far() != before:
                raise LostInCaptureError(
                    "draws random numbers by which a cut model does not compute what it computes as a whole: they would be drawn once and for all"
                )
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._closed or isinstance(m, FrozenStatistics) or super().is_leaf_module(m, module_qualified_name):
            return True
        if hooks_of(m):
            self._closed[module_qualified_name] = "has a hook"
            return True
        self.flattened.add(module_qualified_name)
        return False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        is_batch = node.op == "placeholder" and all(other.op != "placeholder" or other is node for other in node.graph.nodes)
        if self._tokens is not None and is_batch:
            return _TokensProxy(node, self, self._tokens.length)
        return super().proxy(node)

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        if kind in ("call_function", "call_method"):
            self._check_contexts()
        return super().create_proxy(kind, *args, **kwargs)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_contexts()
        path = self.path_of_module(m)
        self._open.append((path, _contexts()))
        before = drawn_so_far()
        try:
            value = super().call_module(m, forward, args, kwargs)
            if drawn_so_far() != before:
                raise LostInCaptureError("draws random numbers, which a graph would draw once and for all")
        except Exception:
            self.failed = path if self.failed is None else self.failed
            raise
        finally:
            self._open.pop()
        self.outputs.setdefault(path, []).append(value.node if isinstance(value, fx.Proxy) else value)
        return value

    def _check_contexts(self) -> None:
        """Refuse what a forward computes in a context that it entered itself: a graph has none."""
        path, entered = self._open[-1]
        now = _contexts()
        if now == entered:
            return
        self.failed = path
        changed = next(name for name, a, b in zip(_CONTEXTS, now, entered, strict=True) if a != b)
        remedy = ", so freeze its weights with requires_grad_(False) or use detach()" if "grad" in changed else ""
        raise LostInCaptureError(f"computes under {changed}, which a cut model would lose{remedy}")


_CONTEXTS = ("torch.inference_mode", "torch.no_grad or set_grad_enabled", *(f"torch.autocast ({device})" for device in _AUTOCAST_DEVICES))


def _contexts() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in _AUTOCAST_DEVICES)
    return (torch.is_inference_mode_enabled(), torch.is_grad_enabled(), *autocast)


def _forward_of(original: type[nn.Module], tokens: TokenInput | None) -> Callable[..., Any]:
    """Return a forward of the batch, and the mask of tokens, alone: all other arguments keep their defaults, whatever these are."""
    inner = original.forward

    def forward(self: nn.Module, batch: Any) -> Any:
        return inner(self, batch)

    def with_mask(self: nn.Module, batch: Any, mask: Any) -> Any:
        return inner(self, batch, mask=mask)

    def with_attention_mask(self: nn.Module, batch: Any, attention_mask: Any) -> Any:
        return inner(self, batch, attention_mask=attention_mask)

    masked = {"mask": with_mask, "attention_mask": with_attention_mask}
    return forward if tokens is None or tokens.mask_argument is None else masked[tokens.mask_argument]


class _TokensProxy(fx.Proxy):
    """The batch of tokens: positions and masks are made of its length in Python, and the length is that of every program."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, length: int) -> None:
        super().__init__(node, tracer)
        self._length = length

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    @property
    def shape(self) -> tuple[Any, int]:
        return self.tracer.create_proxy("call_method", "size", (self, 0), {}), self._length


_MAKERS = ("arange", "zeros", "ones", "full", "empty")
"""Functions of torch that fx does not see, since none of their arguments is a tensor: a size or a device of the data makes them part of the graph."""


@contextmanager
def _recorded_makers() -> Iterator[None]:
    originals = {name: getattr(torch, name) for name in _MAKERS}

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            found: list[fx.Proxy] = []
            fx.node.map_aggregate((args, kwargs), lambda value: found.append(value) if isinstance(value, fx.Proxy) else None)
            return found[0].tracer.create_proxy("call_function", original, args, kwargs) if found else original(*args, **kwargs)

        return make

    try:
        for name, original in originals.items():
            setattr(torch, name, recording(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)
