"""Trace a model into one graph of its layers and the operations between them (torch.fx); layers stay modules and keep their names."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from heron_common.errors import ConfigurationError
from heron_server.models.batch_norm import FrozenStatistics
from heron_server.models.token_input import TokenInput

_DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}

_SIMPLE = (int, float, bool, str, torch.dtype, torch.device, torch.Size, tuple, type(None))

_NOT_THE_USERS = (torch.__path__[0], str(Path(__file__).parents[1]), "<")
"""How the files begin whose lines are no help to a user."""


@dataclass(frozen=True)
class TensorFacts:
    """What a tensor in the graph looked like when a batch ran through."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Trace:
    """A model as a graph.

    Attributes:
        graph: of the model in evaluation mode; its first placeholder is the batch.
        objects: what `call_module` and `get_attr` nodes refer to, by target.
        outputs: what each submodule returned, by name, once per call.
        closed: submodules that stay whole because their inside cannot be traced, with the reason.
        dropouts: nodes that are dropout in training mode, and the layer that does the same.
        tokens: how the model takes tokens, None if it takes numbers.

    """

    graph: fx.Graph
    objects: dict[str, Any]
    outputs: dict[str, list[object]]
    closed: dict[str, str]
    dropouts: dict[fx.Node, nn.Module]
    tokens: TokenInput | None = None

    @property
    def input(self) -> fx.Node:
        """The batch."""
        batch: fx.Node = next(node for node in self.graph.nodes if node.op == "placeholder")
        return batch

    @property
    def mask(self) -> fx.Node | None:
        """The mask of tokens, if forward takes it."""
        named = None if self.tokens is None else self.tokens.mask_argument
        return next((node for node in self.graph.nodes if node.op == "placeholder" and node.target == named), None)

    def run(self, x: torch.Tensor) -> dict[fx.Node, object]:
        """Return TensorFacts or the plain value of every node for one batch."""
        recorder = _Recorder(fx.GraphModule(self.objects, self.graph))
        given = {self.input: x}
        if self.tokens is not None:
            mask = x >= 0
            given[self.input] = torch.where(mask, x, self.tokens.pad_token)
            if self.mask is not None:
                given[self.mask] = self.tokens.mask_of(mask)
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        with torch.no_grad():
            recorder.run(*(given[node] if node in given else node.args[0] for node in placeholders))
        return recorder.facts


def trace(model: nn.Module, tokens: TokenInput | None = None) -> Trace:
    """Trace the model, in evaluation mode afterwards. A submodule that cannot be traced, or acts differently in training, stays whole.

    `tokens` says how it takes tokens; their number in a sequence is then a number, not a value that the graph computes.

    Raises:
        ConfigurationError: the model's own forward cannot be traced; the sentence names the line.

    """
    closed: dict[str, str] = {}
    while True:
        inference = _trace(model.eval(), closed, tokens)
        training = _trace(model.train(), closed, tokens) if inference else None
        model.eval()
        if inference is None or training is None:
            continue
        dropouts = _mode_differences(inference, training, closed)
        if dropouts is not None:
            graph, objects, outputs = inference
            return Trace(graph, objects, outputs, closed, dropouts, tokens)


_Traced = tuple[fx.Graph, dict[str, Any], dict[str, list[object]]]


class _Tracer(fx.Tracer):
    """Remembers what each submodule returned, and the innermost one in which tracing failed."""

    def __init__(self, closed: Mapping[str, str], tokens: TokenInput | None) -> None:
        super().__init__()
        self._closed = closed
        self._tokens = tokens
        self.outputs: dict[str, list[object]] = {}
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._closed or isinstance(m, FrozenStatistics) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        is_batch = node.op == "placeholder" and all(other.op != "placeholder" or other is node for other in node.graph.nodes)
        if self._tokens is not None and is_batch:
            return _TokensProxy(node, self, self._tokens.length)
        return super().proxy(node)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        try:
            value = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or path
            raise
        self.outputs.setdefault(path, []).append(value.node if isinstance(value, fx.Proxy) else value)
        return value


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


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what its values looked like."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.facts: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.facts[n] = TensorFacts(tuple(value.shape), value.dtype)
        else:
            self.facts[n] = value if isinstance(value, _SIMPLE) and not _holds_tensors(value) else type(value)
        return value


def _holds_tensors(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, torch.Tensor) or _holds_tensors(item) for item in value)


def _trace(model: nn.Module, closed: dict[str, str], tokens: TokenInput | None) -> _Traced | None:
    """Trace in the model's present mode; None if one more submodule had to be closed."""
    tracer = _Tracer(closed, tokens)
    before = set(vars(model))
    try:
        with _recorded_makers():
            graph = tracer.trace(model, _defaults(model, tokens))
        objects = {str(n.target): _attribute(model, str(n.target)) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    except ConfigurationError:
        raise
    except Exception as exc:
        if tracer.failed is None or tracer.failed in closed:
            raise ConfigurationError(
                f"the model's own forward cannot be traced: it {reason_of(exc)}; move that into a submodule, or do without it"
            ) from exc
        closed[tracer.failed] = reason_of(exc)
        return None
    finally:
        # The tracer keeps constants of the forward as attributes of the model; they are in `objects`.
        for name in set(vars(model)) - before:
            delattr(model, name)
    return graph, objects, tracer.outputs


def _defaults(model: nn.Module, tokens: TokenInput | None) -> dict[str, Any]:
    """Fix every argument of forward but the first, and the mask of tokens, to its default."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    if tokens is not None:
        parameters = [p for p in parameters if p.name != tokens.mask_argument]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in named if p.default is p.empty]
    if missing:
        raise ConfigurationError(f"the model's forward takes one tensor, but this one also needs {', '.join(missing)}: give them defaults")
    return {p.name: p.default for p in named}


def _attribute(model: nn.Module, target: str) -> Any:
    value: Any = model
    for name in target.split("."):
        value = getattr(value, name)
    return value


def _mode_differences(inference: _Traced, training: _Traced, closed: dict[str, str]) -> dict[fx.Node, nn.Module] | None:
    """Return the functional dropouts; None if a submodule that acts differently in training in another way had to be closed."""
    dropouts: dict[fx.Node, nn.Module] = {}
    pairs = list(zip(inference[0].nodes, training[0].nodes, strict=False))
    for a, b in pairs:
        if a.target in _DROPOUTS and a.target is b.target and b.kwargs.get("training") and not a.kwargs.get("training"):
            dropouts[a] = _DROPOUTS[a.target](b.kwargs["p"])
        elif (a.op, str(a.target), str(a.args), str(a.kwargs)) != (b.op, str(b.target), str(b.args), str(b.kwargs)):
            path = next((path for path in (_module_of(b), _module_of(a)) if path and path not in inference[1]), None)
            if path is None:
                raise ConfigurationError(
                    "the model's own forward does something else in training mode than in evaluation mode "
                    f"({_operation(b)} instead of {_operation(a)}): a cut model cannot; only dropout may differ"
                )
            closed[path] = "acts differently in training"
            return None
    return dropouts


def _operation(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _module_of(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def reason_of(exc: BaseException) -> str:
    """Return what went wrong and in which line of the user's own code, as the end of a sentence that begins with 'it'."""
    first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
    what = f"fails there with {type(exc).__name__}: {first}"
    if "control flow" in first or "data-dependent" in first.lower() or "_local_scalar_dense" in first or "aten.nonzero" in first:
        what = "branches on the values of the data"
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if not frame.filename.startswith(_NOT_THE_USERS)]
    if not frames:
        return what
    line = frames[-1].line or linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
    return f"{what} ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {line})"
