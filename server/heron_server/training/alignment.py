"""Fit each client's head so that its gradients at the cut are the back's (FSL-SAGE, arXiv 2505.23182, auxiliary model alignment)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from heron_common.algorithm.algorithm import Alignment
from heron_common.numerics.tensors import Float32Array
from heron_server.models.split_model import SplitModel, device_of, flat_parameters, predict, trained_parameters
from heron_server.training.aligned import aligned_tensor
from heron_server.training.uploads import DecodedUpload, padded_alike

log = logging.getLogger(__name__)

ALIGNMENT_BATCH = 64
"""Rows of one alignment step; the second-order graph of a whole buffer would be large."""


_Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Activations, labels and, of sequences, the mask."""


@dataclass
class _Rows:
    pieces: list[DecodedUpload] = field(default_factory=list)

    def count(self) -> int:
        return sum(len(piece.labels) for piece in self.pieces)


class HeadAlignment:
    """Keeps the latest rows that each client uploaded in this round, and the clients' heads."""

    def __init__(self, model: SplitModel, settings: Alignment) -> None:
        self._model = model
        self._settings = settings
        self._rows: dict[str, _Rows] = {}
        self.heads: dict[str, Float32Array] = {}

    def keep(self, client_id: str, upload: DecodedUpload) -> None:
        """Keep what a client uploaded, the latest `max_rows` of it."""
        rows = self._rows.setdefault(client_id, _Rows())
        rows.pieces.append(upload.copy())
        while rows.count() - len(rows.pieces[0].labels) >= self._settings.max_rows:
            del rows.pieces[0]

    def kept(self) -> dict[str, list[DecodedUpload]]:
        """Return what is kept of every client in this round."""
        return {client: list(rows.pieces) for client, rows in self._rows.items()}

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
        device = device_of(self._model.back)
        batches = self._batches(rows, device)
        head = self._head_of(client_id, device)
        optimiser = torch.optim.Adam(head.values(), self._settings.learning_rate)
        self._model.back.eval()
        targets = [
            self._cut_gradient(predict(self._model.back, z_.requires_grad_(), mask), z_, y=y_, create_graph=False)
            for z_, y_, mask in _detached(batches)
        ]
        error = torch.zeros(())
        for _ in range(self._settings.epochs):
            for (z_, y_, mask), target in zip(_detached(batches), targets, strict=True):
                arguments = (z_.requires_grad_(),) if mask is None else (z_.requires_grad_(), mask)
                found = self._cut_gradient(functional_call(self._model.auxiliary_head, head, arguments), z_, y=y_, create_graph=True)
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

    def _batches(self, rows: _Rows, device: torch.device) -> list[_Batch]:
        limit, pieces = self._settings.max_rows, padded_alike(rows.pieces)

        def batches(arrays: list[Any]) -> list[torch.Tensor]:
            return list(torch.split(aligned_tensor(np.concatenate(arrays)[-limit:], device), ALIGNMENT_BATCH))

        z, y = batches([piece.activations for piece in pieces]), batches([piece.labels for piece in pieces])
        masks = [piece.mask for piece in pieces if piece.mask is not None]
        return list(zip(z, y, [mask.bool() for mask in batches(masks)] if masks else [None] * len(z), strict=True))

    def _cut_gradient(self, logits: Any, z: torch.Tensor, *, y: torch.Tensor, create_graph: bool) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(self._model.sample_losses(logits, y).sum(), z, create_graph=create_graph)
        return gradient

    def _head_of(self, client_id: str, device: torch.device) -> dict[str, torch.Tensor]:
        flat = torch.from_numpy(self.heads.get(client_id, flat_parameters(self._model.auxiliary_head)).copy()).to(device)
        head, offset = {}, 0
        for name, parameter in trained_parameters(self._model.auxiliary_head):
            head[name] = flat[offset : offset + parameter.numel()].view_as(parameter).clone().requires_grad_()
            offset += parameter.numel()
        return head


def _detached(batches: Iterable[_Batch]) -> Iterable[_Batch]:
    return ((z.detach().clone(), y, mask) for z, y, mask in batches)
