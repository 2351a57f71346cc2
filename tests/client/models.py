"""A tiny split model with its programs, and what plain torch says about it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from heron_client.training.parameters import LocalParameters
from heron_client.training.runtime import Program
from heron_common.algorithm.plan import Estimator, Plan
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import Float32Array
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import BlobReference, ProgramKind, ProgramReference
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export

SHAPE = DataSpecification("tiny", (1, 6, 6), num_classes=3)


@dataclass(frozen=True)
class TinyModel:
    """The model, its programs for one micro-batch, and torch twins."""

    model: SplitModel
    micro_batch: int

    def program(self, kind: ProgramKind, directions: int = 1) -> bytes:
        """Return a program, exported when it is first asked for: an export takes seconds."""
        return _exported(kind, self.micro_batch, directions, self.model.without_gradient)

    def reference(self, kind: ProgramKind, directions: int = 1) -> ProgramReference:
        """Return the reference that a join would name."""
        data = self.program(kind, directions)
        return ProgramReference(
            kind, BlobReference(hashlib.sha256(data).hexdigest(), len(data)), micro_batch=self.micro_batch, directions=directions
        )

    def load(self, kind: ProgramKind, parameters: LocalParameters, data: bytes | None = None, directions: int = 1) -> Program:
        """Load a program over the given buffers."""
        return Program(
            self.reference(kind, directions),
            data or self.program(kind, directions),
            model=self.model.to_spec(),
            parameters=parameters,
            specification=SHAPE,
            threads=1,
        )

    def random_weights(self, seed: int) -> Float32Array:
        """Return flat weights of front and head, small enough that no unit saturates."""
        size = LocalParameters(self.model.to_spec()).theta.size
        return np.random.default_rng(seed).standard_normal(size).astype(np.float32) * np.float32(0.4)

    def even_weights(self) -> Float32Array:
        """Return weights that are all alike."""
        return np.full(LocalParameters(self.model.to_spec()).theta.size, 0.2, np.float32)

    def torch_losses(self, theta: Any, x: Any, y: Any) -> tuple[Any, Any]:
        """Return activations and per-sample local losses by plain torch."""
        leaves = self._leaves(theta)
        with torch.no_grad():
            z = self._front(leaves, x)
            return z.numpy(), self._losses(leaves, z, y).numpy()

    def torch_head_losses(self, theta: Any, z: Any, y: Any) -> Any:
        """Return per-sample losses of given activations, the head standing in for the server."""
        with torch.no_grad():
            return self._losses(self._leaves(theta), torch.from_numpy(np.array(z)).clone(), y).numpy()

    def torch_gradient(self, theta: Any, x: Any, y: Any) -> Any:
        """Return the gradient of the batch's mean local loss, flat over front and head, by autograd."""
        leaves = self._leaves(theta)
        self._losses(leaves, self._front(leaves, x), y).mean().backward()  # type: ignore[no-untyped-call]
        return np.concatenate([leaf.grad.numpy().reshape(-1) for leaf in leaves])

    def torch_pullback(self, theta: Any, x: Any, cut_gradient: Any) -> Any:
        """Return the gradient of the batch's mean <lambda, z>, flat over the front, by autograd."""
        leaves = self._leaves(theta)
        (self._front(leaves, x) * torch.from_numpy(cut_gradient).clone()).flatten(1).sum(1).mean().backward()  # type: ignore[no-untyped-call]
        return np.concatenate([leaf.grad.numpy().reshape(-1) for leaf in leaves[: len(self.model.to_spec().client_model)]])

    def torch_cut_gradient(self, theta: Any, z: Any, y: Any) -> Any:
        """Return the gradient of each sample's own loss at the cut, the head standing in for the server, by autograd."""
        cut = torch.from_numpy(np.array(z)).clone().requires_grad_()
        self._losses(self._leaves(theta), cut, y).sum().backward()  # type: ignore[no-untyped-call]
        return cut.grad.numpy()

    def _leaves(self, theta: Any) -> list[torch.Tensor]:
        spec = self.model.to_spec()
        views = FlatLayout(spec.client_model + spec.auxiliary_head).views(np.ascontiguousarray(theta))
        return [torch.from_numpy(view).clone().requires_grad_() for view in views]

    def _front(self, leaves: list[torch.Tensor], x: Any) -> Any:
        names = [s.name for s in self.model.to_spec().client_model]
        return functional_call(self.model.front, dict(zip(names, leaves, strict=False)), (torch.from_numpy(x).clone(),))

    def _losses(self, leaves: list[torch.Tensor], z: Any, y: Any) -> Any:
        names = [s.name for s in self.model.to_spec().auxiliary_head]
        logits = functional_call(self.model.auxiliary_head, dict(zip(names, leaves[-len(names) :], strict=True)), (z,))
        return self.model.sample_losses(logits, torch.from_numpy(np.array(y)))


@functools.cache
def tiny_model(micro_batch: int, without_gradient: int = 0) -> TinyModel:
    """Build the model, its first tensors to be moved by differences where others move by gradients; kept, for nothing changes it."""
    # Tiny operations gain nothing from more threads, and where cores are busy they lose tenfold.
    torch.set_num_threads(1)
    model = build_model("cnn", {"front_widths": (2,), "front_strides": (2,), "hidden": 8}, data=SHAPE, seed=0)
    return TinyModel(dataclasses.replace(model, without_gradient=without_gradient), micro_batch)


def tiny_model_of(plan: Plan) -> TinyModel:
    """Return the model that a plan trains: of estimator hybrid the convolution moves by differences, norm and head by gradients."""
    return tiny_model(plan.micro_batch, 2 if plan.estimator is Estimator.HYBRID else 0)


@functools.cache
def _exported(kind: ProgramKind, micro_batch: int, directions: int, without_gradient: int) -> bytes:
    return export(compile_function(tiny_model(micro_batch, without_gradient).model, kind, micro_batch=micro_batch, directions=directions))
