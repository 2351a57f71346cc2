"""Fit each client's head so that its gradients at the cut are the back's (FSL-SAGE, arXiv 2505.23182, auxiliary model alignment)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.func import functional_call

from heron_common.plan import Alignment
from heron_common.tensors import Float32Array, Int64Array
from heron_server.models.split_model import SplitModel, flat_parameters

log = logging.getLogger(__name__)

ALIGNMENT_BATCH = 64
"""Rows of one alignment step; the second-order graph of a whole buffer would be large."""


@dataclass
class _Rows:
    activations: list[Float32Array] = field(default_factory=list)
    labels: list[Int64Array] = field(default_factory=list)

    def count(self) -> int:
        return sum(len(piece) for piece in self.labels)


class HeadAlignment:
    """Keeps the latest rows that each client uploaded in this round, and the clients' heads."""

    def __init__(self, model: SplitModel, settings: Alignment) -> None:
        self._model = model
        self._settings = settings
        self._rows: dict[str, _Rows] = {}
        self.heads: dict[str, Float32Array] = {}

    def keep(self, client_id: str, activations: Float32Array, labels: Int64Array) -> None:
        """Keep what a client uploaded, the latest `max_rows` of it."""
        rows = self._rows.setdefault(client_id, _Rows())
        rows.activations.append(activations.copy())
        rows.labels.append(labels.copy())
        while rows.count() - len(rows.labels[0]) >= self._settings.max_rows:
            del rows.activations[0], rows.labels[0]

    def forget(self) -> None:
        """A round is over: its rows are stale."""
        self._rows.clear()

    def is_due(self, round_index: int) -> bool:
        """Whether heads are aligned at the end of this round."""
        return round_index % self._settings.interval_rounds == 0

    def align(self) -> float | None:
        """Align the head of every client that uploaded; return the last mean squared error over clients, None if nobody did."""
        errors = [self._align(client, rows) for client, rows in sorted(self._rows.items())]
        return float(np.mean(errors)) if errors else None

    def _align(self, client_id: str, rows: _Rows) -> float:
        """Minimise sum_i |d loss(head(z_i)) / d z_i - d loss(back(z_i)) / d z_i|^2 over the head with Adam, in upload order."""
        limit = self._settings.max_rows
        device = next(self._model.back.parameters()).device
        z = torch.from_numpy(np.concatenate(rows.activations)[-limit:]).to(device)
        y = torch.from_numpy(np.concatenate(rows.labels)[-limit:]).to(device)
        head = self._head_of(client_id, device)
        optimiser = torch.optim.Adam(head.values(), self._settings.learning_rate)
        batches = list(zip(torch.split(z, ALIGNMENT_BATCH), torch.split(y, ALIGNMENT_BATCH), strict=True))
        self._model.back.eval()
        targets = [self._cut_gradient(self._model.back(z_.requires_grad_()), z_, y_, create_graph=False) for z_, y_ in _detached(batches)]
        error = torch.zeros(())
        for _ in range(self._settings.epochs):
            for (z_, y_), target in zip(_detached(batches), targets, strict=True):
                z_.requires_grad_()
                found = self._cut_gradient(functional_call(self._model.auxiliary_head, head, (z_,)), z_, y_, create_graph=True)
                error = (found - target).square().sum()
                optimiser.zero_grad(set_to_none=True)
                error.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        fitted = torch.cat([value.detach().reshape(-1) for value in head.values()]).cpu().numpy().astype(np.float32)
        if np.isfinite(fitted).all():
            self.heads[client_id] = fitted
        else:
            log.warning("a head could not be aligned and stays as it was: its gradients are not finite", extra={"client": client_id})
        return float(error.detach()) / max(1, len(batches[-1][1]))

    def _cut_gradient(self, logits: torch.Tensor, z: torch.Tensor, y: torch.Tensor, create_graph: bool) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(self._model.sample_losses(logits, y).sum(), z, create_graph=create_graph)
        return gradient

    def _head_of(self, client_id: str, device: torch.device) -> dict[str, torch.Tensor]:
        flat = torch.from_numpy(self.heads.get(client_id, flat_parameters(self._model.auxiliary_head)).copy()).to(device)
        head, offset = {}, 0
        for name, parameter in self._model.auxiliary_head.named_parameters():
            head[name] = flat[offset : offset + parameter.numel()].view_as(parameter).clone().requires_grad_()
            offset += parameter.numel()
        return head


def _detached(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    return ((z.detach().clone(), y) for z, y in batches)
