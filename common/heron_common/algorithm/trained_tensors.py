"""Which of a model's tensors a plan moves, and by what: each set is one piece of the flat buffer of front and head."""

from __future__ import annotations

from heron_common.algorithm.plan import Estimator, Plan
from heron_common.numerics.tensors import TensorSpec
from heron_common.specification.model_spec import ModelSpec


def trained_tensors(plan: Plan, model: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors that a client's steps cover: the front, and the head where the client trains it; the buffer's beginning."""
    return model.client_model + (model.auxiliary_head if plan.trains_head else ())


def perturbed_tensors(plan: Plan, model: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return those of them that move by differences: all, none, or of estimator hybrid the ones before the exact ones; the buffer's beginning."""
    if plan.estimator is Estimator.HYBRID:
        return model.client_model[: model.without_gradient]
    return trained_tensors(plan, model) if plan.perturbs else ()
