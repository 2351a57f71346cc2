"""Blocks that run again for their gradients: autograd's gradients to the last bit, and memory that grows by a block's input, not by all that a block makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from heron_common.specification.model_spec import ProgramKind
from heron_server.models.recomputation import Chain, after, recomputed_blocks, recomputing
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export
from heron_server.programs.parity import check_outputs
from tests.server.programs.live_bytes import peak_live_bytes
from tests.server.training.first_order import split

WIDTH, PLACES = 8, 6


class Block(nn.Module):
    """x + W_2 tanh(W_1 x) scaled by what is frozen and by a buffer; a tuple, as some libraries' blocks return."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 8 * WIDTH), nn.Linear(8 * WIDTH, WIDTH)
        self.frozen = nn.Parameter(torch.rand(WIDTH), requires_grad=False)
        self.register_buffer("scale", torch.rand(WIDTH))

    def forward(self, x: torch.Tensor, factor: float) -> tuple[torch.Tensor, None]:
        return x + factor * self.second(torch.tanh(self.first(x)).square()) * self.frozen * self.scale, None


class Front(Chain):
    """Blocks one after the other."""

    def __init__(self, count: int) -> None:
        torch.manual_seed(count)
        super().__init__([Block() for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            result = layer(x, factor=0.5)
            x = result[0] if isinstance(result, tuple) else result
        return x


def gradients(front: Front, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    leaves = [x, *(value for value in tensors.values() if value.requires_grad)]
    return torch.autograd.grad(functional_call(front, tensors, (x,)).square().sum(), leaves)


def test_gradients_are_those_of_a_chain_that_keeps_everything() -> None:
    front, x = Front(3), torch.randn(2, WIDTH, requires_grad=True)
    # Other tensors than the module's own, as programs give them: the second pass must not fall back to these.
    given = {n: torch.rand_like(v).requires_grad_(v.requires_grad) for n, v in [*front.named_parameters(), *front.named_buffers()]}
    kept = gradients(front, x, given)
    with recomputing(front):
        again = gradients(front, x, given)
    assert len(again) == 13 and all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients(front, x, given), kept, strict=True))


def test_all_but_the_last_block_run_twice_and_their_hooks_once() -> None:
    front, calls, hooked = Front(4), [0] * 4, [0] * 4
    for i, layer in enumerate(front.layers):
        layer.first.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        layer.register_forward_hook(lambda *_, i=i: hooked.__setitem__(i, hooked[i] + 1))
    with recomputing(front):
        front(torch.randn(2, WIDTH)).sum().backward()
    assert calls == [2, 2, 2, 1] and hooked == [1, 1, 1, 1]
    assert recomputed_blocks(front) == list(front.layers)[:3] and recomputed_blocks(Front(1), nn.Identity()) == []
    assert recomputed_blocks(front, Front(1)) == list(front.layers)


def test_a_value_waits_for_others_and_stays_what_it_is() -> None:
    value = torch.randn(3)
    others = [torch.tensor([[number]]) for number in (torch.inf, -torch.inf, torch.nan, 0.0)]
    assert torch.equal(after(value, *others), value)


@pytest.mark.parametrize("kind", [ProgramKind.GRADIENT, ProgramKind.PULLBACK])
def test_a_further_block_costs_its_input_in_the_order_that_the_runtime_runs(kind: ProgramKind, tmp_path: Path) -> None:
    few, many = 2, 6
    peaks: dict[int, int] = {}
    for count in (few, many):
        model = split(Front(count), (PLACES, WIDTH))
        program = export(compile_function(model, kind, micro_batch=2))
        check_outputs(model, kind, program=program, micro_batch=2, seed=0)
        directory = tmp_path / str(count)
        directory.mkdir()
        peaks[count] = peak_live_bytes(program, directory)
    own = 4 * 2 * PLACES * WIDTH
    assert peaks[many] - peaks[few] <= (many - few) * own + 64
    # A block that keeps what its backward pass needs holds two tensors that are eight times as wide.
    assert peaks[few] >= 16 * own
