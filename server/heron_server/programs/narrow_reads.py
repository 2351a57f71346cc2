"""Read rows of narrowly stored weights before widening them: an embedding or a block of an unembedding must not cost a whole float32 matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def read_rows_before_widening(module: fx.GraphModule) -> None:
    """Rewrite `rows of (s q)` into `(rows of s) (rows of q)` for embeddings and slices along the first dimension, in place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten.embedding.default:
            operation, rest = aten.embedding.default, (node.args[1],)
        elif node.target is aten.slice.Tensor and (node.args[1] if len(node.args) > 1 else 0) == 0:
            operation, rest = aten.slice.Tensor, node.args[1:]
        else:
            continue
        parts = _widened(node.args[0])
        if parts is None:
            continue
        stored, scales = parts
        with graph.inserting_before(node):
            rows = graph.call_function(operation, (stored, *rest))
            wide = graph.call_function(aten._to_copy.default, (rows,), {"dtype": torch.float32})
            if scales is not None:
                row_scales = graph.call_function(operation, (scales, *rest))
                wide = graph.call_function(aten.mul.Tensor, (wide, row_scales))
        node.replace_all_uses_with(wide)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def _widened(node: Any) -> tuple[fx.Node, fx.Node | None] | None:
    """Return what a widened weight is made of, its stored values and, for int8, its scales as a column; None if it is none."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten._to_copy.default and _is_input(node.args[0]):
        stored = node.args[0]
        return (stored, None) if isinstance(stored, fx.Node) else None
    if node.target is aten.mul.Tensor and len(node.args) == 2:
        wide, scales = node.args
        found = _widened(wide)
        column = isinstance(scales, fx.Node) and scales.target is aten.view.default and _is_input(scales.args[0])
        if found is not None and found[1] is None and column and isinstance(scales, fx.Node):
            return found[0], scales
    return None


def _is_input(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "placeholder"
