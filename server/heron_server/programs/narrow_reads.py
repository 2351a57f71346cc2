"""Programs over narrowly stored weights: rows are read before they are widened, and scales go to activations, so that no float32 matrix is made twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_READS = (aten.embedding.default, aten.slice.Tensor)


def narrow(module: fx.GraphModule) -> None:
    """Rewrite a graph in place: `rows of (s q)` into `(rows of s) (rows of q)`, then `x (s q)` into `(x s) q` and `x (s q)^T` into `(x q^T) s`."""
    for node in list(module.graph.nodes):
        _read_rows_before_widening(module.graph, node)
    for node in list(module.graph.nodes):
        _scale_activations(module.graph, node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _read_rows_before_widening(graph: fx.Graph, node: fx.Node) -> None:
    if node.target is aten.embedding.default:
        operation, rest = aten.embedding.default, tuple(node.args[1:2])
    elif node.target is aten.slice.Tensor and (node.args[1] if len(node.args) > 1 else 0) == 0:
        operation, rest = aten.slice.Tensor, tuple(node.args[1:])
    else:
        return
    parts = _widened(node.args[0])
    if parts is None:
        return
    stored, scales = parts
    with graph.inserting_before(node):
        wide = graph.call_function(aten._to_copy.default, (graph.call_function(operation, (stored, *rest)),), {"dtype": torch.float32})
        if scales is not None:
            wide = graph.call_function(aten.mul.Tensor, (wide, graph.call_function(operation, (scales, *rest))))
    node.replace_all_uses_with(wide)
    graph.erase_node(node)


def _scale_activations(graph: fx.Graph, node: fx.Node) -> None:
    if node.target not in (aten.mm.default, aten.addmm.default) or len(node.kwargs):
        return
    *bias, x, weight = node.args
    transposed = isinstance(weight, fx.Node) and weight.target is aten.permute.default and list(weight.args[1]) == [1, 0]  # type: ignore[arg-type]
    parts = _widened(weight.args[0] if transposed and isinstance(weight, fx.Node) else weight)
    if parts is None or parts[1] is None:
        return
    stored, column = parts
    with graph.inserting_before(node):
        wide = graph.call_function(aten._to_copy.default, (stored,), {"dtype": torch.float32})
        row = graph.call_function(aten.view.default, (column, [1, -1]))
        if transposed:
            turned = graph.call_function(aten.permute.default, (wide, [1, 0]))
            result = graph.call_function(aten.mul.Tensor, (graph.call_function(aten.mm.default, (x, turned)), row))
        else:
            result = graph.call_function(aten.mm.default, (graph.call_function(aten.mul.Tensor, (x, row)), wide))
        if bias:
            result = graph.call_function(aten.add.Tensor, (result, bias[0]))
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _widened(node: Any) -> tuple[fx.Node, fx.Node | None] | None:
    """Return what a widened weight is made of, its stored values and, for int8, its scales as a column; None if it is none."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten._to_copy.default and _is_stored(node.args[0]):
        stored = node.args[0]
        return (stored, None) if isinstance(stored, fx.Node) else None
    if node.target is aten.mul.Tensor and len(node.args) == 2:
        wide, scales = node.args
        found = _widened(wide)
        if found is not None and found[1] is None and isinstance(scales, fx.Node) and _is_column(scales):
            return found[0], scales
    return None


def _is_stored(node: Any) -> bool:
    """Whether a node is an input, or rows of one."""
    return _is_input(node) or (isinstance(node, fx.Node) and node.target in _READS and _is_stored(node.args[0]))


def _is_column(node: fx.Node) -> bool:
    """Whether a node is an input as a column, or rows of such a one."""
    if node.target in _READS and isinstance(node.args[0], fx.Node):
        return _is_column(node.args[0])
    return node.target is aten.view.default and _is_input(node.args[0]) and node.args[1] == [-1, 1]


def _is_input(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "placeholder"
