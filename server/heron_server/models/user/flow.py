"""What lies before and behind a node of a traced model, and which numbers are known on both sides of a cut there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import fx

from heron_server.models.user.trace import TensorFacts, Trace

_PROBES = (2, 3)
"""Sizes of two batches: a number that is the same in both is a constant, one that follows them is the batch's size."""


class Flow:
    """The graph of a model by ancestry, and what its values looked like when two batches ran through it."""

    def __init__(self, traced: Trace, example: Callable[[int], torch.Tensor]) -> None:
        """Run two batches through; `example` makes one of so many rows."""
        self.nodes = list(traced.graph.nodes)
        # The mask of tokens, where there is one, is no input here: it travels beside the activations, so that both sides know it.
        self._input, self.mask = traced.input, traced.mask
        self._output = next(n for n in self.nodes if n.op == "output")
        self._runs = [traced.run(example(rows)) for rows in _PROBES]
        self._used = _reachable([self._output], lambda n: n.all_input_nodes)
        # What hangs on the data by nothing but numbers, such as the size of the batch, can be computed on either side of a cut.
        self._dependent, self._numbers = {self._input}, set[fx.Node]()
        for node in self.nodes:
            inputs = set(node.all_input_nodes)
            if inputs & self._dependent or (inputs & self._numbers and self.known(node) is not None):
                (self._numbers if self.known(node) is not None else self._dependent).add(node)

    def facts(self, node: fx.Node) -> object:
        """Return TensorFacts, or the value itself, of the first batch."""
        return self._runs[0].get(node)

    def is_float_by_rows(self, node: fx.Node) -> bool:
        """Whether a node gives a float32 tensor with a row per sample."""
        facts = [run.get(node) for run in self._runs]
        return all(
            isinstance(f, TensorFacts) and f.dtype == torch.float32 and len(f.shape) > 1 and f.shape[0] == rows
            for f, rows in zip(facts, _PROBES, strict=True)
        )

    def connects(self, node: fx.Node) -> bool:
        """Whether a node lies on a way from the input to the output."""
        return node in self._dependent and node in self._used

    def is_input(self, node: fx.Node) -> bool:
        """Whether a node is the batch."""
        return node is self._input

    def front(self, cut: fx.Node) -> set[fx.Node]:
        """Return all that a node is computed from, and itself."""
        return _reachable([cut], lambda n: n.all_input_nodes)

    def back(self, cut: fx.Node) -> set[fx.Node]:
        """Return what leads to the output from the cut on, and from constants and known numbers; these and the cut are not in it."""
        borders = self._borders(cut)
        return _reachable([self._output], lambda n: [] if n in borders else n.all_input_nodes) - borders

    def needed(self, cut: fx.Node) -> list[fx.Node]:
        """Return the values besides the cut that are computed from the data without it and needed behind it: known numbers, or what would have to cross."""
        back, borders = self.back(cut), self._borders(cut) - {cut}
        return [n for n in self.nodes if n in borders and any(user in back for user in n.users)]

    def _borders(self, cut: fx.Node) -> set[fx.Node]:
        after = _reachable([cut], lambda n: n.users) - {cut}
        return (self._dependent | self._numbers) - after

    def known(self, node: fx.Node) -> Callable[[fx.Graph, fx.Node], fx.node.Argument] | None:
        """Return how to know a value from the activations alone, given the graph and their node; None if it is a tensor or a sum of shapes."""
        one, other = (run.get(node) for run in self._runs)
        if isinstance(one, TensorFacts | type) or node.target in ("item", "tolist") or node.op == "placeholder":
            return None
        if isinstance(one, torch.device):
            return lambda graph, z: graph.call_function(getattr, (z, "device"))
        if one == other:
            return lambda graph, z: one  # type: ignore[return-value]
        if (one, other) == _PROBES:
            return lambda graph, z: graph.call_method("size", (z, 0))
        return None


def _reachable(starts: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = list(starts)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(neighbours(node))
    return found
