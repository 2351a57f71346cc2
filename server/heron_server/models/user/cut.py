"""Where a model can be cut in two, and why not elsewhere: exactly one tensor crosses, and no weight is on both sides.

torch.fx traces the model and rebuilds both sides; which operation goes where is decided here, by ancestry. `torch.fx.passes.split_module` renames the
layers and cuts by the order of the program, and torch.export turns dropout and normalisation into operations of one mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from torch import fx, nn
from torch._subclasses import FakeTensorMode

from heron_server.models.batch_norm import FrozenStatistics
from heron_server.models.copies import copied, generators_kept
from heron_server.models.token_input import TokenInput
from heron_server.models.user.flow import Flow
from heron_server.models.user.reasons import reason_of
from heron_server.models.user.sides import back_module, front_module, layers_of, parameters_of, whole_module
from heron_server.models.user.trace import TensorFacts, Trace, trace


class Obstacle(StrEnum):
    """Why a submodule is no place to cut."""

    NOT_CALLED = "not called itself: a list, or unused"
    INSIDE = "inside a layer that stays whole"
    REPEATED = "called several times"
    NOT_A_TENSOR = "gives something else than one float32 tensor with a row per sample"
    DEAD_END = "not on the way from the input to the logits"
    CROSSING = "another tensor would have to cross as well"
    EMPTY_FRONT = "no weights to train in front"
    EMPTY_BACK = "no weights to train behind"
    SHARED = "a weight would be on both sides"
    NARROW = "a weight in front is not float32"
    BATCH_STATISTICS = "batch normalisation with moving statistics in front"
    DATA_DEPENDENT = "the front would branch on the values of the data"


@dataclass(frozen=True)
class Refusal:
    """Why one submodule is no place to cut; the detail ends a sentence that begins 'it cannot be cut at ...: '."""

    obstacle: Obstacle
    detail: str


class Cutter:
    """A model's places to cut and the two sides of each."""

    def __init__(
        self, model: nn.Module, example: Callable[[int], torch.Tensor], *, by_batch: bool = False, tokens: TokenInput | None = None
    ) -> None:
        """Trace the model and run two small batches through a copy of it to learn its shapes.

        `example` makes a batch of so many rows; `by_batch` says that devices normalise by whole batches, so that batch normalisation with moving
        statistics may stand in front; `tokens` how the model takes tokens, if it does.

        Raises:
            ConfigurationError: its own forward cannot be traced.

        """
        self._by_batch = by_batch
        self._names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        self._state = set(model.state_dict())
        self._trace: Trace = trace(model, tokens)
        self._example = example
        self._flow = Flow(self._trace, example)
        self._data_dependent: dict[fx.Node, str] = {}

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Every submodule behind which a cut works, in the order of the computation; of several with one output the outermost."""
        found: dict[fx.Node, str] = {}
        for name in sorted(self._names, key=lambda n: n.count(".")):
            node = self._node(name)
            if isinstance(node, fx.Node) and node not in found and self._obstacle(node) is None:
                found[node] = name
        return tuple(found[node] for node in self._flow.nodes if node in found)

    @cached_property
    def refusals(self) -> dict[str, Refusal]:
        """Every submodule behind which no cut works, with the reason."""
        refusals = {name: self.refusal(name) for name in self._names}
        return {name: refusal for name, refusal in refusals.items() if refusal is not None}

    @property
    def kept_whole(self) -> dict[str, str]:
        """Submodules whose inside cannot be traced, with the reason; one of them may stand behind a cut."""
        return self._trace.closed

    def has(self, name: str) -> bool:
        """Whether the model has a submodule of this name."""
        return name in self._names

    def refusal(self, name: str) -> Refusal | None:
        """Return why the model cannot be cut behind this submodule, None if it can."""
        node = self._node(name)
        return node if isinstance(node, Refusal) else self._obstacle(node)

    def front(self, name: str) -> fx.GraphModule:
        """Return the front of a place where a cut works; its tensors are the model's own."""
        return front_module(self._trace, self._flow, cut=self._place(name), state=self._state)

    def back(self, name: str) -> fx.GraphModule:
        """Return the back of a place where a cut works; its tensors are copies."""
        x, front = self._example(2), copied(self.front(name))
        with torch.no_grad(), generators_kept():
            z = front(x)
        return back_module(
            self._trace, self._flow, cut=self._place(name), state=self._state, z=z, mask=None if self._trace.tokens is None else x >= 0
        )

    def captured(self) -> fx.GraphModule:
        """Return the whole as it was captured, which takes what the model takes; its tensors are copies."""
        return whole_module(self._trace, self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one sample's activations behind a place where a cut works."""
        facts = self._flow.facts(self._place(name))
        assert isinstance(facts, TensorFacts)
        return facts.shape[1:]

    def _place(self, name: str) -> fx.Node:
        node = self._node(name)
        assert isinstance(node, fx.Node)
        return node

    def _node(self, name: str) -> fx.Node | Refusal:
        outputs = self._trace.outputs.get(name, [])
        if len(outputs) == 1 and isinstance(outputs[0], fx.Node):
            return outputs[0]
        if len(outputs) > 1:
            return Refusal(Obstacle.REPEATED, f"it is called {len(outputs)} times, so its name does not say where")
        if outputs:
            return Refusal(Obstacle.NOT_A_TENSOR, f"it returns a {type(outputs[0]).__name__}, and exactly one tensor crosses the cut")
        whole = next((path for path in self._trace.objects if name.startswith(f"{path}.")), None)
        if whole is not None:
            reason = f"it {self._trace.closed[whole]}" if whole in self._trace.closed else "it is a layer of torch"
            return Refusal(Obstacle.INSIDE, f"it lies inside {whole!r}, which stays whole because {reason}")
        return Refusal(Obstacle.NOT_CALLED, "forward does not call it itself: it is a list or unused")

    def _obstacle(self, cut: fx.Node) -> Refusal | None:
        if not self._flow.is_float_by_rows(cut):
            facts = self._flow.facts(cut)
            came = f"a {str(facts.dtype)[6:]} tensor of shape {list(facts.shape)}" if isinstance(facts, TensorFacts) else "several values"
            return Refusal(Obstacle.NOT_A_TENSOR, f"it returns {came}, and one float32 tensor with a row per sample crosses the cut")
        if not self._flow.connects(cut):
            return Refusal(Obstacle.DEAD_END, "the logits do not depend on what it returns, or that not on the input")
        crossing = [self._called(n) for n in self._flow.needed(cut) if self._flow.known(n) is None]
        if crossing:
            return Refusal(
                Obstacle.CROSSING, f"besides its output {' and '.join(crossing)} would have to cross, and exactly one tensor may"
            )
        return next(self._obstacles_of_sides(cut), None)

    def _obstacles_of_sides(self, cut: fx.Node) -> Iterator[Refusal]:
        front, back = self._ordered(self._flow.front(cut)), self._ordered(self._flow.back(cut))
        held = parameters_of(self._trace, front)
        mine, theirs = _trained(held), _trained(parameters_of(self._trace, back))
        if not mine:
            yield Refusal(Obstacle.EMPTY_FRONT, "no weights would be left in front for clients to train")
        if not theirs:
            yield Refusal(Obstacle.EMPTY_BACK, "no weights would be left behind it for the server to train")
        shared = _shared(mine, theirs)
        if shared:
            yield Refusal(
                Obstacle.SHARED,
                f"the weight {' and '.join(shared)} would be on both sides, and each side trains its own: untie or freeze it",
            )
        narrow = [f"{name} is {str(p.dtype)[6:]}" for name, p in held.items() if p.dtype != torch.float32]
        if narrow:
            yield Refusal(Obstacle.NARROW, f"the weight {narrow[0]}, and clients compute in float32, so return the model after float()")
        yield from self._moving_statistics(front)
        for node, reason in self._data_dependence(front):
            yield Refusal(Obstacle.DATA_DEPENDENT, f"{node.target} in front cannot be compiled because it {reason}")

    def _moving_statistics(self, front: list[fx.Node]) -> Iterator[Refusal]:
        moving = [
            name
            for name, layer in layers_of(self._trace, front).items()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, FrozenStatistics)
        ]
        if moving and not self._by_batch:
            yield Refusal(
                Obstacle.BATCH_STATISTICS,
                f"the batch normalisation {moving[0]} in front makes a sample depend on its batch, so use GroupNorm, "
                "return the model after eval() to freeze the statistics that it has, or add batch_norm=batch to --model-options to federate them",
            )

    def _data_dependence(self, front: list[fx.Node]) -> Iterator[tuple[fx.Node, str]]:
        """Run the submodules that could not be traced on tensors without values: what asks for one branches on data, and no program can."""
        for node in front:
            if node.op == "call_module" and node.target in self._trace.closed:
                if node not in self._data_dependent:
                    self._data_dependent[node] = self._fails_without_values(node)
                if self._data_dependent[node]:
                    yield node, self._data_dependent[node]

    def _ordered(self, nodes: Set[fx.Node]) -> list[fx.Node]:
        return [node for node in self._flow.nodes if node in nodes]

    def _fails_without_values(self, node: fx.Node) -> str:
        def stand_in(argument: fx.Node) -> object:
            facts = self._flow.facts(argument)
            return torch.zeros(facts.shape, dtype=facts.dtype) if isinstance(facts, TensorFacts) else facts

        try:
            module = copied(self._trace.objects[str(node.target)])
            with generators_kept(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                arguments = fx.node.map_arg((node.args, dict(node.kwargs)), stand_in)  # type: ignore[arg-type]
                module(*arguments[0], **arguments[1])
        except Exception as exc:
            return reason_of(exc)
        return ""

    def _called(self, node: fx.Node) -> str:
        """Return what a user would call a node."""
        if self._flow.is_input(node):
            return "the model's input"
        names = [name for name, outputs in self._trace.outputs.items() if any(output is node for output in outputs)]
        if names:
            return f"the output of {min(names, key=len)!r}"
        stack = list(node.meta.get("nn_module_stack", {}).values())
        return f"the result of {getattr(node.target, '__name__', node.target)}" + (
            f" in {stack[-1][0]!r}" if stack and stack[-1][0] else ""
        )


def _trained(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}


def _shared(mine: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in theirs.items()}
    pairs = [(name, names[id(parameter)]) for name, parameter in mine.items() if id(parameter) in names]
    return [name if name == other else f"{name} (which is {other})" for name, other in pairs]
