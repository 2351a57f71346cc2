"""First-order programs: gradients that ONNX Runtime computes equal autograd's in float64, for every operation that has a rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.programs.compile import compile_function
from heron_server.programs.export import ProgramCache, export
from heron_server.programs.parity import check_outputs
from tests.server.training.first_order import assert_equal, autograd, run, samples, split

Conv = nn.Conv2d


class Residual(nn.Module):
    """x -> body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


class Tokens(nn.Module):
    """Floats -> embedded tokens, numbered by their whole parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(x.long().abs() % 3)


FRONTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stride 1, kernels beyond the image, in-place ReLU": (
        lambda: nn.Sequential(
            Conv(2, 4, (3, 2), padding=(2, 0)),
            nn.ReLU(inplace=True),
            Conv(4, 6, 3, groups=2, padding=1, dilation=(1, 2)),
            Conv(6, 6, 3, groups=6, padding=1, bias=False),
            Conv(6, 2, 1),
        ),
        (2, 2, 4),
    ),
    "strides that leave rows over": (
        lambda: nn.Sequential(
            Conv(2, 4, 1),
            Conv(4, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            Conv(4, 4, 3, stride=(2, 1), groups=4, padding=1),
            Conv(4, 6, 2, stride=(1, 3), dilation=2, groups=2),
            Conv(6, 3, 1, stride=2, padding=1),
        ),
        (2, 12, 16),
    ),
    "group norms and residuals": (
        lambda: nn.Sequential(
            Conv(3, 4, 3),
            Residual(
                nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), Conv(4, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)), nn.GroupNorm(1, 4)
            ),
            nn.GELU(),
            Residual(nn.GroupNorm(2, 4, affine=False), nn.Identity()),
        ),
        (3, 6, 5),
    ),
    "layer norms, GELU, attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
            nn.Linear(4, 3),
            nn.GELU("tanh"),
            nn.LayerNorm(3, bias=False),
        ),
        (3, 4),
    ),
    "embedded tokens": (lambda: nn.Sequential(Tokens(), nn.LayerNorm(4), nn.Linear(4, 3)), (6,)),
    "maxima with ties, averages": (
        lambda: nn.Sequential(
            Conv(2, 3, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.MaxPool2d(3, 1, 1),
            Conv(3, 3, 1),
            nn.AvgPool2d((3, 2), (2, 1), (1, 0)),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.AdaptiveAvgPool2d(1),
        ),
        (2, 12, 13),
    ),
}


@pytest.mark.parametrize("name", FRONTS)
def test_gradients_equal_autograds(name: str) -> None:
    build, shape = FRONTS[name]
    model = split(build(), shape)
    function = compile_function(model, ProgramKind.GRADIENT, micro_batch=2)
    program = export(function)
    data = samples(model, 2, tokens=name == "embedded tokens")
    # Layer norms over a handful of values magnify rounding.
    tolerance = 1e-4 if name.startswith("layer norms") else 1e-5
    assert_equal(run(program, model, data), autograd(model, ProgramKind.GRADIENT, data), tolerance)
    assert tuple(value.name for value in onnx.load_from_string(program).graph.input) == function.input_names


def test_a_rounds_gradient_is_the_sum_over_its_micro_batches(tiny_model: SplitModel, program_cache: ProgramCache) -> None:
    half, whole = (program_cache.program(tiny_model, ProgramKind.GRADIENT, micro_batch=rows) for rows in (2, 4))
    data = samples(tiny_model, 4)
    pieces = [run(half, tiny_model, {name: array[i : i + 2] for name, array in data.items()}) for i in (0, 2)]
    wanted = autograd(tiny_model, ProgramKind.GRADIENT, data)
    together = {n: np.concatenate([p[n] for p in pieces]) if n in ("activations", "losses") else sum(p[n] for p in pieces) for n in wanted}
    assert_equal(together, wanted)
    assert_equal(run(whole, tiny_model, data), wanted)


def test_gradients_predict_how_losses_move(tiny_model: SplitModel, program_cache: ProgramCache) -> None:
    program = program_cache.program(tiny_model, ProgramKind.GRADIENT, micro_batch=2)
    data = samples(tiny_model, 2)
    gradients = {name: value for name, value in run(program, tiny_model, data).items() if name.startswith("gradients.")}
    parameters = [*tiny_model.front.parameters(), *tiny_model.auxiliary_head.parameters()]
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator) for p in parameters]
    predicted = sum(float((torch.from_numpy(g) * d).sum()) for g, d in zip(gradients.values(), direction, strict=True))
    found = moved(tiny_model, parameters, direction, lambda: float(run(program, tiny_model, data)["losses"].sum(dtype=np.float64)))
    assert found == pytest.approx(predicted, rel=1e-2)


def test_a_surrogates_difference_is_the_pullbacks_inner_product(tiny_model: SplitModel, program_cache: ProgramCache) -> None:
    surrogate, pullback = (program_cache.program(tiny_model, kind, micro_batch=2) for kind in (ProgramKind.SURROGATE, ProgramKind.PULLBACK))
    data = samples(tiny_model, 2)
    parameters = list(tiny_model.front.parameters())
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator) for p in parameters]
    gradients = run(pullback, tiny_model, data)
    assert_equal(gradients, autograd(tiny_model, ProgramKind.PULLBACK, data))
    predicted = sum(float((torch.from_numpy(g) * d).sum()) for g, d in zip(gradients.values(), direction, strict=True))
    found = moved(
        tiny_model, parameters, direction, lambda: float(run(surrogate, tiny_model, data)["inner_products"].sum(dtype=np.float64))
    )
    assert found == pytest.approx(predicted, rel=1e-2)
    by_sample = run(surrogate, tiny_model, data)
    np.testing.assert_allclose(
        by_sample["inner_products"], (by_sample["activations"] * data["cut_gradient"]).reshape(2, -1).sum(1), rtol=1e-5, atol=1e-6
    )


def moved(model: SplitModel, parameters: list[nn.Parameter], direction: list[torch.Tensor], value: Callable[[], float]) -> float:
    """The central difference of `value` along `direction`."""
    radius, values = 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * radius)
        values.append(value())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=sign * radius)
    return (values[0] - values[1]) / (2 * radius)


@pytest.mark.slow
def test_a_residual_network_with_strides_and_projections() -> None:
    model = build_model(
        "resnet",
        {"width": 4, "groups": 2, "blocks": [1, 1], "front_blocks": 2},
        data=DataSpecification("test", (3, 6, 6), num_classes=3),
        seed=0,
    )
    program = export(compile_function(model, ProgramKind.GRADIENT, micro_batch=1))
    data = samples(model, 1)
    assert_equal(run(program, model, data), autograd(model, ProgramKind.GRADIENT, data))
    operations = [node.op_type for node in onnx.load_from_string(program).graph.node]
    assert operations.count("Relu") == 1 + 2 * 2, "the forward pass is computed once"


def test_a_value_that_no_gradient_needs_stays_an_input_and_its_gradient_is_right() -> None:
    model = split(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (4,))
    program = export(compile_function(model, ProgramKind.PULLBACK, micro_batch=2))
    assert [value.name for value in onnx.load_from_string(program).graph.input] == ["x", "cut_gradient", "client_model.0", "client_model.1"]
    data = samples(model, 2)
    assert_equal(run(program, model, data), autograd(model, ProgramKind.PULLBACK, data))


def test_a_gradient_that_is_zero_in_theory_passes_the_gate(program_cache: ProgramCache) -> None:
    """The norm takes the bias of a single channel away again."""
    model = build_model(
        "cnn", {"front_widths": [1], "front_strides": [2]}, data=DataSpecification("test", (1, 8, 8), num_classes=3), seed=0
    )
    program = program_cache.program(model, ProgramKind.GRADIENT, micro_batch=2)
    assert check_outputs(model, ProgramKind.GRADIENT, program=program, micro_batch=2, seed=1) <= 1e-5
