"""The client's weights: one flat buffer that is trained, one that programs read, one of running statistics, named views of all."""

from __future__ import annotations

import numpy as np

from heron_common.assignment import ModelSpec
from heron_common.layout import FlatLayout
from heron_common.tensors import Float32Array


class LocalParameters:
    """theta = (theta_c, theta_a), flat; `theta` is the truth, `working` is what programs see.

    Perturbed weights are written to `working` only, so no rounding ever accumulates in `theta`. `statistics` are the running ones of batch
    normalisations: no weights, so nothing perturbs them and no optimiser sees them.
    """

    def __init__(self, model: ModelSpec) -> None:
        self.front_layout = FlatLayout(model.client_model)
        self.joint_layout = FlatLayout(model.client_model + model.auxiliary_head)
        self.theta: Float32Array = np.zeros(self.joint_layout.num_parameters, np.float32)
        self.working: Float32Array = np.zeros_like(self.theta)
        self.statistics: Float32Array = np.zeros(FlatLayout(model.statistics).num_parameters, np.float32)
        self._num_front = self.front_layout.num_parameters

    def trained_layout(self, with_head: bool) -> FlatLayout:
        """Return the layout of what a step changes: a prefix of the flat buffer."""
        return self.joint_layout if with_head else self.front_layout

    @property
    def front(self) -> Float32Array:
        """theta_c as a view."""
        return self.theta[: self._num_front]

    @property
    def head(self) -> Float32Array:
        """theta_a as a view."""
        return self.theta[self._num_front :]

    def working_views(self) -> dict[str, Float32Array]:
        """Return every tensor of `working` under its program input name."""
        views = self.joint_layout.views(self.working)
        num_front = len(self.front_layout.specs)
        front = {f"client_model.{i}": view for i, view in enumerate(views[:num_front])}
        return front | {f"auxiliary_head.{i}": view for i, view in enumerate(views[num_front:])}

    def show_base(self) -> None:
        """Let programs see theta itself."""
        np.copyto(self.working, self.theta)

    def show_front(self, front: Float32Array) -> None:
        """Let programs see another front, such as a snapshot of an earlier step."""
        np.copyto(self.working[: self._num_front], front)
