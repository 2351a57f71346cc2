"""The tensors that a plan makes a client send and the server answer with."""

from __future__ import annotations

from dataclasses import replace

from heron_common.algorithm.plan import Objective, Plan, UpdateEncoding
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.specification.model_spec import ModelSpec


def upload_specs(plan: Plan, model: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors of one upload: activations of the base and each probe in the wire dtype, labels, and what goes with them.

    An upload is of one length: where texts have several, `model` is the one `of_length` (`heron_common.specification.text_lengths`).
    """
    activations = TensorSpec("activations", DType(plan.wire_dtype.value), (plan.batch_size * (1 + plan.num_probes), *model.cut.shape))
    beside = tuple(TensorSpec(spec.name, spec.dtype, (plan.batch_size, *spec.shape)) for spec in (model.labels, *model.context))
    return (activations, *beside)


def evaluation_specs(plan: Plan, model: ModelSpec, rows: int) -> tuple[TensorSpec, ...]:
    """Return the tensors of an upload of `rows` held-out samples: those of a training upload, without probes."""
    return upload_specs(replace(plan, objective=Objective.NONE, batch_size=rows), model)


def cut_gradient_specs(plan: Plan, model: ModelSpec) -> tuple[TensorSpec, ...]:
    """Return the tensors that answer an upload: lambda, the gradient of each sample's loss at the cut, in the wire dtype; none in most plans."""
    if not plan.needs_cut_gradient:
        return ()
    return (TensorSpec("cut_gradient", DType(plan.wire_dtype.value), (plan.batch_size, *model.cut.shape)),)


def update_specs(plan: Plan, model: ModelSpec, encoding: UpdateEncoding | None = None) -> tuple[TensorSpec, ...]:
    """Return the tensors of an update in the plan's encoding or another: those of `weight_specs`, then the running statistics where the model has them.

    None if nothing was trained and no statistics moved.
    """
    size = sum(t.num_elements for t in model.statistics)
    statistics = (TensorSpec("statistics", DType.FLOAT32, (size,)),) if size else ()
    return (*weight_specs(plan, model, encoding), *statistics)


def weight_specs(plan: Plan, model: ModelSpec, encoding: UpdateEncoding | None = None) -> tuple[TensorSpec, ...]:
    """Return what an update says of the weights: a log's coefficients, or the flat front and, if the client trains it, the head; nothing if none moved."""
    if not plan.trains_front:
        return ()
    if (encoding or plan.update_encoding) is UpdateEncoding.LOG:
        directions = plan.direction_groups * plan.num_directions
        return (TensorSpec("coefficients", DType.FLOAT64, (plan.local_steps, directions)),)
    flat = [TensorSpec("client_model", DType.FLOAT32, (sum(t.num_elements for t in model.client_model),))]
    if plan.trains_head:
        flat.append(TensorSpec("auxiliary_head", DType.FLOAT32, (sum(t.num_elements for t in model.auxiliary_head),)))
    return tuple(flat)
