"""A back per client, each with its own optimiser, averaged at the end of a round (SFLV1, arXiv 2004.12088)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from heron_common.numerics.tensors import Float64Array

MakeOptimiser = Callable[[nn.Module], torch.optim.Optimizer]


class BackReplicas:
    """Backs by client. A client's first one is a copy of the average; its optimiser's moments are its own for the whole run.

    `average` writes the mean into the model's own back, which is what is evaluated and checkpointed, and every replica starts the next round from it.
    """

    def __init__(self, back: nn.Module, make_optimiser: MakeOptimiser) -> None:
        self._back = back
        self._make_optimiser = make_optimiser
        self._members: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}

    def of(self, client_id: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return a client's back and optimiser, made on first use."""
        if client_id not in self._members:
            replica = copy.deepcopy(self._back)
            self._members[client_id] = (replica, self._make_optimiser(replica))
        return self._members[client_id]

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Return the optimisers of all that were made."""
        return [optimiser for _, optimiser in self._members.values()]

    def average(self, members: Sequence[str], weights: Float64Array) -> None:
        """Set the model's back to sum_i w_i theta_s,i, accumulated in float64, and every replica to that; clients that do not count lose their steps."""
        present = [
            (self._members[name][0].state_dict(), float(w)) for name, w in zip(members, weights, strict=True) if name in self._members
        ]
        total = sum(weight for _, weight in present)
        if total > 0:
            mean = {
                name: sum((state[name].double() * (weight / total) for state, weight in present), torch.zeros(())).to(value.dtype)
                for name, value in self._back.state_dict().items()
            }
            self._back.load_state_dict(mean)
        self.reset()

    def reset(self) -> None:
        """Set every replica to the model's back; moments stay."""
        for replica, _ in self._members.values():
            replica.load_state_dict(self._back.state_dict())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the moments of every replica's optimiser; their weights at a round boundary are the model's."""
        return {
            f"replica.{client}/{index}.{field}": value.detach().cpu().clone()
            for client, (_, optimiser) in self._members.items()
            for index, values in optimiser.state_dict()["state"].items()
            for field, value in values.items()
            if isinstance(value, torch.Tensor)
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights of every replica, which inside a round are its own."""
        return {
            f"replica_back.{client}/{name}": value.detach().cpu().clone()
            for client, (back, _) in self._members.items()
            for name, value in back.state_dict().items()
        }

    def load_weights(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the replicas to weights that `weights` returned."""
        prefix = "replica_back."
        for name, value in tensors.items():
            if name.startswith(prefix):
                client, _, key = name[len(prefix) :].rpartition("/")
                self.of(client)[0].state_dict()[key].copy_(value)

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go back to a state that `tensors` returned; the model's back was loaded before."""
        self._members.clear()
        for client in sorted({name[len("replica.") :].rpartition("/")[0] for name in tensors if name.startswith("replica.")}):
            _, optimiser = self.of(client)
            load_moments(optimiser, tensors, f"replica.{client}/")


def load_moments(optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """Set an optimiser's moments from tensors named PREFIX<index>.<field>."""
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            index, field = name[len(prefix) :].split(".", 1)
            moments.setdefault(int(index), {})[field] = value.clone()
    state: dict[str, Any] = optimiser.state_dict()
    optimiser.load_state_dict({**state, "state": moments})
