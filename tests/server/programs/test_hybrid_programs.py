"""Programs of fronts of which only the end has gradients: what is not asked for is neither computed nor kept, and the gates look at the rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from heron_common.algorithm.algorithm import Algorithm
from heron_common.algorithm.presets import preset
from heron_common.errors import ParityError
from heron_common.numerics.layout import FlatLayout
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, flat_parameters, trained_parameters
from heron_server.models.train_weights import with_train_weights
from heron_server.programs.compile import compile_function
from heron_server.programs.difference_gate import DIFFERENCE_TOLERANCE, check_difference
from heron_server.programs.export import ProgramCache
from heron_server.programs.publish import complete_algorithm, publish, scales_of

DATA = DataSpecification("images", (1, 8, 8), num_classes=10)
WIDTHS = (3, 4, 2)


def model_of(name: str) -> SplitModel:
    row = preset(name)
    built = build_model("cnn", {"front_widths": WIDTHS, "front_strides": (1, 1, 1)}, data=DATA, seed=0)
    return with_train_weights(built, row.train_weights, exact=row.exact_weights)


def completed(name: str, **changes: object) -> tuple[Algorithm, SplitModel]:
    row, model = preset(name), model_of(name)
    plan = dataclasses.replace(row.plan, batch_size=4, micro_batch=2, local_steps=2, **changes)  # type: ignore[arg-type]
    return complete_algorithm(dataclasses.replace(row, plan=plan), model)[0], model


@pytest.mark.parametrize("name", ["last-exact", "hybrid"])
def test_a_gradient_of_the_last_block_costs_its_products_and_the_heads(name: str) -> None:
    """By hand: of the block the product for its weights, of the head those for weights and input; none for the block's input."""
    algorithm, _ = completed(name)
    convolutions = [2 * 9 * a * b * 64 for a, b in zip((1, *WIDTHS), WIDTHS, strict=False)]
    head = 2 * (WIDTHS[-1] * 64) * 10
    expected = (convolutions[-1] + 2 * head) / (sum(convolutions) + head)
    assert expected <= algorithm.plan.backward_equivalents < expected + 2 / 1024
    assert completed("cse-fsl")[0].plan.backward_equivalents == 2


@pytest.mark.parametrize("name", ["last-exact", "hybrid"])
def test_gradients_are_autograds_and_of_the_last_block_and_the_head_alone(name: str) -> None:
    model = model_of(name)
    function = compile_function(model, ProgramKind.GRADIENT, micro_batch=4)
    x, y = (torch.from_numpy(a) for a in model.random_batch(4, np.random.Generator(np.random.Philox(key=3))))
    outputs = dict(zip(function.output_names, function.module(x, y, *function.arguments[2:]), strict=True))
    found = {key: value for key, value in outputs.items() if key.startswith("gradients.")}
    last = [p for key, p in trained_parameters(model.front) if key.startswith("2.")]
    heads = [p for _, p in trained_parameters(model.auxiliary_head)]
    loss = model.sample_losses(model.auxiliary_head(model.front(x)), y).sum()
    expected = torch.autograd.grad(loss, [*last, *heads])
    first = model.without_gradient
    assert list(found) == [f"gradients.client_model.{i}" for i in range(first, first + 4)] + [
        "gradients.auxiliary_head.0",
        "gradients.auxiliary_head.1",
    ]
    for ours, twin in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5)


def test_a_hybrid_run_publishes_both_programs_each_proved_and_no_convolution_too_many(tmp_path: Path) -> None:
    algorithm, model = completed("hybrid")
    published, report = publish(algorithm, model, cache=ProgramCache(tmp_path), seed=0)
    programs = {p.reference.kind: p for p in published}
    assert set(programs) == {ProgramKind.GRADIENT, ProgramKind.LOSS}
    assert report.difference_error is not None and report.difference_error <= DIFFERENCE_TOLERANCE
    assert programs[ProgramKind.LOSS].reference.directions == algorithm.plan.directions_per_run
    graph = onnx.load_from_string(programs[ProgramKind.GRADIENT].data).graph
    convolutions = sum(node.op_type.startswith("Conv") for node in graph.node)
    assert convolutions <= len(WIDTHS) + 1, "three forwards, and the last one's weights"


def test_the_gate_is_about_the_weights_that_are_perturbed(tmp_path: Path) -> None:
    """Scales are those of the norms that are perturbed, and a radius that is too long for them is refused."""
    algorithm, model = completed("hybrid", direction_groups=2)
    cache = ProgramCache(tmp_path)
    program = cache.program(model, ProgramKind.LOSS, micro_batch=2, directions=algorithm.plan.directions_per_run)
    scales = scales_of(model, algorithm)
    assert len(scales) == model.without_gradient
    tensors = FlatLayout(model.to_spec().client_model).views(flat_parameters(model.front))[: len(scales)]
    root = np.sqrt(np.mean(np.square(np.concatenate([t.reshape(-1) for t in tensors]))))
    np.testing.assert_allclose(scales, root, rtol=1e-6)
    assert check_difference(model, algorithm.plan, program=program, scales=scales, seed=3) <= DIFFERENCE_TOLERANCE
    other = dataclasses.replace(algorithm.plan, smoothing_radius=2.0)
    with pytest.raises(ParityError, match="smoothing_radius around 2 gives"):
        check_difference(model, other, program=program, scales=scales, seed=3)
