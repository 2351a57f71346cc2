"""The client's weights: one flat buffer that is trained, one that programs read, one of running statistics, named views of all."""

from __future__ import annotations

import numpy as np

from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import Float32Array
from heron_common.specification.model_spec import ModelSpec


class LocalParameters:
    """theta = (theta_c, theta_a), flat, of which `descended_layout` is what gradients are computed of; `theta` is the truth, `working` is what programs see.

    Perturbed weights are written to `working` only, so no rounding ever accumulates in `theta`. `working` has a row for each of the directions that one
    run of a program takes; a program that takes one reads the first. `statistics` are the running ones of batch normalisations: no weights, so nothing
    perturbs them and no optimiser sees them.
    """

    def __init__(self, model: ModelSpec, directions: int = 1) -> None:
        self.front_layout = FlatLayout(model.client_model)
        self.joint_layout = FlatLayout(model.client_model + model.auxiliary_head)
        self.descended_layout = FlatLayout(model.client_model[model.without_gradient :] + model.auxiliary_head)
        self.theta: Float32Array = np.zeros(self.joint_layout.num_parameters, np.float32)
        self.working: Float32Array = np.zeros((directions, self.theta.size), np.float32)
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
        """Return every tensor of the first row of `working` under its program input name."""
        views = self.joint_layout.views(self.working[0])
        num_front = len(self.front_layout.specs)
        front = {f"client_model.{i}": view for i, view in enumerate(views[:num_front])}
        return front | {f"auxiliary_head.{i}": view for i, view in enumerate(views[num_front:])}

    def show_base(self) -> None:
        """Let programs see theta itself."""
        np.copyto(self.working, self.theta)

    def show_front(self, front: Float32Array) -> None:
        """Let programs see another front, such as that of an earlier step."""
        np.copyto(self.working[:, : self._num_front], front)


class SentFront:
    """The front that the upload under way was computed from, for a retry that computes it again, at the least memory that this takes.

    It is theta until a step moves that; from then on it rests in the working buffer, which nothing needs before the next pass; and where passes go on
    beside the same upload it is copied. The optimiser says when it moves theta, whoever runs passes says so before.
    """

    def __init__(self, parameters: LocalParameters) -> None:
        self._parameters = parameters
        self._in_working = False
        self._copy: Float32Array | None = None

    def begin(self) -> None:
        """An upload of theta as it is begins; no other is under way."""
        self._in_working, self._copy = False, None

    def before_move(self) -> None:
        """Theta is about to move."""
        if self._copy is None and not self._in_working:
            self._parameters.show_base()
            self._in_working = True

    def before_passes(self) -> None:
        """Passes of another step are about to write to the working buffer."""
        if self._in_working:
            self._copy = self._parameters.working[0, : self._parameters.front.size].copy()
            self._in_working = False

    def show(self) -> None:
        """Let programs see it."""
        if not self._in_working:
            self._parameters.show_base()
        if self._copy is not None:
            self._parameters.show_front(self._copy)
