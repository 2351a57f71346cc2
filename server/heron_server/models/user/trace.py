"""Trace a model into one graph of its layers and the operations between them (torch.fx); layers stay modules and keep their names."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from heron_common.errors import ConfigurationError
from heron_server.models.copies import copied, generators_kept
from heron_server.models.token_input import TokenInput
from heron_server.models.user.capture import OWN_ATTRIBUTES, ModelTracer
from heron_server.models.user.reasons import reason_of

_DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}

_SIMPLE = (int, float, bool, str, torch.dtype, torch.device, torch.Size, tuple, type(None))


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
    _: KW_ONLY
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
        recorder = _Recorder(fx.GraphModule(copied(self.objects), self.graph))
        given = {self.input: x}
        if self.tokens is not None:
            mask = x >= 0
            given[self.input] = torch.where(mask, x, self.tokens.pad_token)
            if self.mask is not None:
                given[self.mask] = self.tokens.mask_of(mask)
        with torch.no_grad(), generators_kept():
            recorder.run(*(given[node] for node in self.graph.nodes if node.op == "placeholder"))
        return recorder.facts


def trace(model: nn.Module, tokens: TokenInput | None = None) -> Trace:
    """Trace copies of the model. A submodule that cannot be traced, acts differently in training, or does what a graph would lose stays whole.

    `tokens` says how it takes tokens; their number in a sequence is then a number, not a value that the graph computes.

    Raises:
        ConfigurationError: the model's own forward cannot be traced; the sentence names the line.

    """
    closed: dict[str, str] = {}
    while True:
        inference = _trace(model, False, closed=closed, tokens=tokens)
        training = _trace(model, True, closed=closed, tokens=tokens) if inference else None
        if inference is None or training is None:
            continue
        dropouts = _mode_differences(inference, training, closed)
        if dropouts is not None:
            graph, objects, outputs = inference
            return Trace(graph, objects, outputs=outputs, closed=closed, dropouts=dropouts, tokens=tokens)


_Traced = tuple[fx.Graph, dict[str, Any], dict[str, list[object]]]


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


def _trace(model: nn.Module, training: bool, *, closed: dict[str, str], tokens: TokenInput | None) -> _Traced | None:
    """Trace a copy of the model in one mode; None if one more submodule had to be closed."""
    scratch, tracer = copied(model), ModelTracer(closed, tokens)
    scratch.train(training)
    try:
        with generators_kept():
            graph = tracer.traced(scratch)
    except Exception as exc:
        if not tracer.failed or tracer.failed in closed:
            raise ConfigurationError(
                f"the model's own forward cannot be traced: it {reason_of(exc)}; move that into a submodule, or do without it"
            ) from exc
        closed[tracer.failed] = reason_of(exc)
        return None
    changed = _changed_place(model, scratch, tracer.flattened)
    if changed is not None:
        _close(changed, closed)
        return None
    wanted = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    # The model's own; what the tracer made of the forward's constants stands in the copy alone.
    objects = {target: _attribute(scratch if target.startswith(OWN_ATTRIBUTES) else model, target) for target in wanted}
    return graph, objects, tracer.outputs


def same_values(one: object, other: object) -> bool:
    """Return whether two tensors, or two numbers, are the same; not a number is the same as itself."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        a, b = one.detach(), other.detach()
        return a.shape == b.shape and a.dtype == b.dtype and (torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()))
    return type(one) is type(other) and (one == other or one != one)


def _changed_place(model: nn.Module, scratch: nn.Module, flattened: Set[str]) -> tuple[str, str] | None:
    """Return which module's state tracing changed, and what of it: a graph would change it once and for all, or not at all."""
    theirs = dict(scratch.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        other = theirs.get(path)
        if other is None:
            return path.rpartition(".")[0], "its modules"
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        # What a model's own forward keeps beside these may be of no account: the comparison of whole and graph decides.
        held += vars(module).items() if path in flattened else ()
        for name, value in held:
            if (isinstance(value, torch.Tensor) or type(value) in (int, float)) and not same_values(value, getattr(other, name, None)):
                return path, name
    return None


def _close(changed: tuple[str, str], closed: dict[str, str]) -> None:
    path, name = changed
    while path in closed:
        path = path.rpartition(".")[0]
    if not path:
        raise ConfigurationError(
            f"the model's own forward cannot be traced: it changes {'.'.join(part for part in changed if part)}, "
            "which a cut model would not; move that into a submodule"
        )
    closed[path] = f"changes {name} in its forward"


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
