"""Build front and back of a cut as modules of their own; weights keep the names that they have in the model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Set
from typing import Any

import torch
from torch import fx, nn

from heron_server.models.copies import copied, generators_kept
from heron_server.models.user.flow import Flow
from heron_server.models.user.trace import Trace

_CONSTANTS = "traced_constants"
"""Tensors that forward makes itself live below this name and outside the state, which holds the model's own tensors alone."""


def front_module(traced: Trace, flow: Flow, *, cut: fx.Node, state: Set[str]) -> fx.GraphModule:
    """Return x -> z in evaluation mode: without dropout, which a device's programs cannot draw. Its tensors are the model's own."""
    graph, wanted = fx.Graph(), flow.front(cut)
    copies: dict[fx.Node, Any] = _tokens_in_front(graph, traced) if traced.tokens else {}
    for node in flow.nodes:
        if node in wanted and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[cut])
    return _assembled(graph, traced.objects, state).eval()


def _tokens_in_front(graph: fx.Graph, traced: Trace) -> dict[fx.Node, Any]:
    """Begin a front with samples of tokens, PADDING where there is none; returns what stands for the inputs of the whole."""
    assert traced.tokens is not None
    x = graph.placeholder("tokens")
    mask = graph.call_function(operator.ge, (x, 0))
    inputs: dict[fx.Node, Any] = {traced.input: graph.call_function(torch.where, (mask, x, traced.tokens.pad_token))}
    return inputs | ({traced.mask: _mask(graph, traced, mask)} if traced.mask is not None else {})


def _mask(graph: fx.Graph, traced: Trace, mask: fx.Node) -> fx.Node:
    assert traced.tokens is not None
    return graph.call_method("to", (mask, torch.int64)) if traced.tokens.mask_argument == "attention_mask" else mask


def back_module(traced: Trace, flow: Flow, *, cut: fx.Node, state: Set[str], z: torch.Tensor, mask: torch.Tensor | None) -> fx.GraphModule:
    """Return z -> logits; dropout acts in training mode. Its tensors are copies, and z stays as it is, whatever the model does in place.

    The back of a model of tokens takes their mask too, whether it needs it or not. It is tried on `z` and `mask`.
    """
    back = _back(traced, flow, cut=cut, state=state, keeps_input=False)
    probe, tried = copied(back).train(), z.clone()
    with torch.no_grad(), generators_kept():
        probe(tried) if mask is None else probe(tried, mask)
    # The server's step needs the activations again: for the head, and for the gradient at the cut.
    return back if tried._version == 0 else _back(traced, flow, cut=cut, state=state, keeps_input=True)


def whole_module(traced: Trace, state: Set[str]) -> fx.GraphModule:
    """Return the whole of a trace, to be called as the model is; dropout acts in training mode. Its tensors are copies."""
    graph, objects, copies = fx.Graph(), dict(traced.objects), dict[fx.Node, Any]()
    for node in traced.graph.nodes:
        copies[node] = _node_copy(graph, node, traced=traced, objects=objects, copies=copies)
    return copied(_assembled(graph, objects, state))


def _node_copy(graph: fx.Graph, node: fx.Node, *, traced: Trace, objects: dict[str, Any], copies: dict[fx.Node, Any]) -> fx.Node:
    """Copy a node, one that is dropout in training mode as a layer of that."""
    if node not in traced.dropouts:
        return graph.node_copy(node, copies.__getitem__)
    objects[f"functional_{node.name}"] = traced.dropouts[node]
    return graph.call_module(f"functional_{node.name}", (copies[node.all_input_nodes[0]],))


def _back(traced: Trace, flow: Flow, *, cut: fx.Node, state: Set[str], keeps_input: bool) -> fx.GraphModule:
    graph, wanted, numbers = fx.Graph(), flow.back(cut), flow.needed(cut)
    objects = dict(traced.objects)
    z = graph.placeholder("activations")
    copies: dict[fx.Node, Any] = {cut: graph.call_method("clone", (z,)) if keeps_input else z}
    if traced.tokens is not None:
        mask = graph.placeholder("mask")
        copies |= {traced.mask: _mask(graph, traced, mask)} if traced.mask in wanted else {}
    for node in flow.nodes:
        if node in copies:
            continue
        if node in numbers:
            known = flow.known(node)
            assert known is not None
            copies[node] = known(graph, z)
        elif node in wanted:
            copies[node] = _node_copy(graph, node, traced=traced, objects=objects, copies=copies)
    return copied(_assembled(graph, objects, state))


def _assembled(graph: fx.Graph, objects: dict[str, Any], state: Set[str]) -> fx.GraphModule:
    """Make a module of a graph, with every tensor of the model where the model has it."""
    objects = dict(objects)
    made: list[str] = []
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and isinstance(objects[target], torch.Tensor) and target not in state:
            # Kept below a module of its own: a copy of a GraphModule puts its direct buffers back into the state.
            name = target.replace(".", "_")
            node.target = f"{_CONSTANTS}.{name}"
            objects[node.target] = objects[target]
            made.append(name)
    module = fx.GraphModule(objects, graph)
    if made:
        module.get_submodule(_CONSTANTS)._non_persistent_buffers_set.update(made)
    module.recompile()
    return module


def layers_of(traced: Trace, nodes: Iterable[fx.Node]) -> dict[str, nn.Module]:
    """Return the innermost modules that these nodes call, by their names in the model."""
    layers: dict[str, nn.Module] = {}
    for node in nodes:
        if node.op == "call_module":
            for name, module in traced.objects[str(node.target)].named_modules():
                layers[f"{node.target}.{name}".rstrip(".")] = module
    return layers


def parameters_of(traced: Trace, nodes: Iterable[fx.Node]) -> dict[str, nn.Parameter]:
    """Return the weights that these nodes use, by their names in the model."""
    parameters: dict[str, nn.Parameter] = {}
    for node in nodes:
        if node.op == "call_module":
            for name, parameter in traced.objects[str(node.target)].named_parameters():
                parameters[f"{node.target}.{name}"] = parameter
        elif node.op == "get_attr" and isinstance(traced.objects[str(node.target)], nn.Parameter):
            parameters[str(node.target)] = traced.objects[str(node.target)]
    return parameters
