"""Front and head of a split model as functions of their tensors, ready to be put together as programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from heron_common.specification.model_spec import FRONT_STATISTICS, HEAD_STATISTICS
from heron_server.models.base import named_frozen, widened
from heron_server.models.batch_norm import moving_layers, normalising
from heron_server.models.block_heads import BlockHeads
from heron_server.models.split_model import SplitModel, trained_parameters

Tensors = list[torch.Tensor]


class ClientPart:
    """Front and, where a program has it, head, as functions of their trained and frozen tensors and of their running statistics.

    Where the model has running statistics it normalises by the batch, as torch does in training mode; the statistics that it is given move in place, and
    those of the model itself stay.
    """

    def __init__(self, model: SplitModel, with_head: bool) -> None:
        self.model = model
        self.modules = (model.front, model.auxiliary_head) if with_head else (model.front,)
        wanted = {id(value) for module in self.modules for _, value in named_frozen(module)}
        self._frozen = [(index, frozen) for index, frozen in enumerate(model.frozen) if id(frozen.value) in wanted]
        read = {spec.name for spec in model.to_spec().statistics_read(with_head)}
        self.statistics = {name: value.detach().cpu() for name, value in model.statistics.items() if name in read}

    def base_inputs(self) -> list[tuple[str, torch.Tensor]]:
        """Return the program inputs of the frozen tensors and what is stored in them."""
        return [
            (f"base.{index}" if place == 0 else f"base.{index}.scales", stored)
            for index, frozen in self._frozen
            for place, stored in enumerate(frozen.stored)
        ]

    def widen(self, base: Tensors) -> dict[int, torch.Tensor]:
        """Return the float32 tensors that stored ones stand for, by the identity of the model's own."""
        stored = iter(base)
        return {id(frozen.value): widened(tuple(next(stored) for _ in frozen.stored)) for _, frozen in self._frozen}

    def copied(self, statistics: Tensors) -> dict[str, torch.Tensor]:
        """Return copies of the running statistics, for a pass to move."""
        return {name: value.clone() for name, value in zip(self.statistics, statistics, strict=True)}

    def front(
        self, x: torch.Tensor, trained: Tensors, *, base: dict[int, torch.Tensor], moving: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return z; without `moving` nobody wants to know where the statistics go."""
        z: torch.Tensor = self._call(self.model.front, FRONT_STATISTICS, trained=trained, base=base, moving=moving, arguments=(x,))
        return z

    def head(
        self,
        x: torch.Tensor,
        z: torch.Tensor,
        *,
        trained: Tensors,
        base: dict[int, torch.Tensor],
        moving: dict[str, torch.Tensor] | None = None,
    ) -> Any:
        """Return the head's outputs."""
        mask = self.model.mask(x)
        return self._call(
            self.model.auxiliary_head,
            HEAD_STATISTICS,
            trained=trained,
            base=base,
            moving=moving,
            arguments=(z,) if mask is None else (z, mask),
        )

    @property
    def inner_places(self) -> tuple[str, ...]:
        """The submodules of the front behind which local losses are, but for its end."""
        head = self.model.auxiliary_head
        return head.places if isinstance(head, BlockHeads) else ()

    def inner_losses(self, x: torch.Tensor, y: torch.Tensor, *, outputs: Tensors, trained: Tensors) -> Tensors:
        """Return the sum over samples of each inner local loss, of the outputs behind its block."""
        heads = self.model.auxiliary_head
        if not isinstance(heads, BlockHeads):
            return []
        tensors = dict(zip([name for name, _ in trained_parameters(heads)], trained, strict=True))
        mask, losses = self.model.mask(x), []
        for index, (output, head) in enumerate(zip(outputs, heads.inner, strict=True)):
            own = f"inner.{index}."
            given = {name.removeprefix(own): value for name, value in tensors.items() if name.startswith(own)}
            losses.append(self.model.sample_losses(functional_call(head, given, (output,) if mask is None else (output, mask)), y).sum())
        return losses

    def present_front(self, x: torch.Tensor) -> torch.Tensor:
        """Return z by the model's own weights, which gradients reach."""
        return self.front(x, [parameter for _, parameter in trained_parameters(self.model.front)], base=self._present_base())

    def present_head(self, x: torch.Tensor, z: torch.Tensor) -> Any:
        """Return the head's outputs by the model's own weights, which gradients reach."""
        return self.head(
            x, z, trained=[parameter for _, parameter in trained_parameters(self.model.auxiliary_head)], base=self._present_base()
        )

    def _present_base(self) -> dict[int, torch.Tensor]:
        return {id(frozen.value): frozen.value for _, frozen in self._frozen}

    def _call(
        self,
        module: nn.Module,
        prefix: str,
        *,
        trained: Tensors,
        base: dict[int, torch.Tensor],
        moving: dict[str, torch.Tensor] | None,
        arguments: tuple[torch.Tensor, ...],
    ) -> Any:
        tensors = _by_name(module, trained, base)
        if not self.model.batch_statistics:
            return functional_call(module, tensors, arguments)
        moving = self.copied(list(self.statistics.values())) if moving is None else moving
        tensors |= {name.removeprefix(prefix): value for name, value in moving.items() if name.startswith(prefix)}
        # A count that every pass raises: it is no statistic that anything reads, and the model's own must stay.
        tensors |= {f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.int64) for name in moving_layers(module)}
        with normalising(True, module):
            return functional_call(module, tensors, arguments)


def _by_name(module: nn.Module, trained: Tensors, base: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [name for name, _ in trained_parameters(module)]
    return dict(zip(names, trained, strict=True)) | {name: base[id(value)] for name, value in named_frozen(module)}
