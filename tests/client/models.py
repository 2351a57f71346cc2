"""A tiny split model with its programs, and what plain torch says about it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from heron_client.parameters import LocalParameters
from heron_client.runtime import Program
from heron_common.assignment import BlobReference, DataSpecification, ProgramKind, ProgramReference
from heron_common.layout import FlatLayout
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.programs.export import ProgramCache

SHAPE = DataSpecification("tiny", (1, 6, 6), 3)


@dataclass(frozen=True)
class TinyModel:
    """The model, its programs for one micro-batch, and torch twins."""

    model: SplitModel
    programs: dict[ProgramKind, bytes]
    micro_batch: int

    def reference(self, kind: ProgramKind) -> ProgramReference:
        """Return the reference that a join would name."""
        data = self.programs[kind]
        return ProgramReference(kind, BlobReference(hashlib.sha256(data).hexdigest(), len(data)), self.micro_batch)

    def load(self, kind: ProgramKind, parameters: LocalParameters, data: bytes | None = None) -> Program:
        """Load a program over the given buffers."""
        return Program(self.reference(kind), data or self.programs[kind], self.model.to_spec(), parameters, self.model.input_shape, 1)

    def torch_losses(self, theta: Any, x: Any, y: Any) -> tuple[Any, Any]:
        """Return activations and per-sample local losses by plain torch."""
        spec = self.model.to_spec()
        front, head = FlatLayout(spec.client_model), FlatLayout(spec.auxiliary_head)
        weights = [torch.from_numpy(v.copy()) for v in front.views(np.ascontiguousarray(theta[: front.num_parameters]))]
        heads = [torch.from_numpy(v.copy()) for v in head.views(np.ascontiguousarray(theta[front.num_parameters :]))]
        with torch.no_grad():
            z = functional_call(
                self.model.front, dict(zip([s.name for s in spec.client_model], weights, strict=True)), (torch.from_numpy(x),)
            )
            logits = functional_call(self.model.auxiliary_head, dict(zip([s.name for s in spec.auxiliary_head], heads, strict=True)), (z,))
            return z.numpy(), self.model.sample_losses(logits, torch.from_numpy(y)).numpy()


def tiny_model(cache: Path, micro_batch: int) -> TinyModel:
    """Build the model and compile both programs."""
    model = build_model("cnn", {"front_widths": (2,), "front_strides": (2,), "hidden": 8}, SHAPE, seed=0)
    programs = {kind: ProgramCache(cache).program(model, kind, micro_batch) for kind in ProgramKind}
    return TinyModel(model, programs, micro_batch)
