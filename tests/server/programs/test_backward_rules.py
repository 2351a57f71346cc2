"""Backward rules, operation by operation, equal autograd in float64 without an export; what has none is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import heron_server.programs.convolution_gradient as convolution_gradient
from heron_common.errors import ProgramError
from heron_common.specification.model_spec import ProgramKind
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export
from heron_server.programs.gradient import with_backward_rules
from tests.server.training.first_order import assert_equal, autograd, samples, split

Conv = nn.Conv2d


def differentiate(front: nn.Module, shape: tuple[int, ...], rows: int) -> None:
    """Compare the rules with autograd without exporting."""
    model = split(front, shape)
    function = compile_function(model, ProgramKind.PULLBACK, micro_batch=rows)
    data = samples(model, rows)
    traced = with_backward_rules(function.module, function.arguments)
    weights = [p.detach() for p in model.front.parameters()]
    found = [g.numpy() for g in traced(torch.from_numpy(data["x"]), torch.from_numpy(data["cut_gradient"]), weights, [])]
    assert_equal(dict(zip(function.output_names, found, strict=True)), autograd(model, ProgramKind.PULLBACK, data))


@pytest.mark.parametrize(("gathered", "rows"), [(0, 3), (1 << 15, 1)])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 0, 1), (1, 3, 1), (1, 1, 2), (2, 1, 1), ((1, 2), (0, 2), (2, 1)), (3, 0, 1)]
)
def test_convolution_rules_equal_autograds(
    monkeypatch: pytest.MonkeyPatch, gathered: int, rows: int, groups: int, stride: Any, padding: Any, dilation: Any
) -> None:
    monkeypatch.setattr(convolution_gradient, "_GATHERED", gathered)
    inner = Conv(4, 8, (3, 2), stride=stride, padding=padding, dilation=dilation, groups=groups)
    differentiate(nn.Sequential(Conv(2, 4, 1), inner), (2, 8, 9), rows)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_pooling_rules_equal_autograds(ceil_mode: bool, include: bool) -> None:
    differentiate(nn.Sequential(Conv(2, 3, 1), nn.AvgPool2d((3, 2), (2, 3), 1, ceil_mode, include)), (2, 8, 7), 2)
    differentiate(nn.Sequential(Conv(2, 3, 1), nn.MaxPool2d((3, 2), (2, 3), 1, ceil_mode=ceil_mode)), (2, 8, 7), 2)


def test_padding_of_any_kind() -> None:
    padded = nn.Sequential(
        Conv(2, 3, 3, padding="same"), nn.Tanh(), nn.ZeroPad2d((1, 0, 0, 2)), Conv(3, 2, 5, padding=2), Conv(2, 2, 2, padding=2)
    )
    differentiate(padded, (2, 1, 3), 2)


def test_rules_hold_in_one_and_three_dimensions() -> None:
    differentiate(nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv1d(3, 2, 3, stride=2)), (2, 10), 2)
    differentiate(nn.Sequential(nn.Conv3d(2, 2, 1), nn.Conv3d(2, 3, (2, 1, 3), padding=1)), (2, 3, 4, 3), 2)


def test_adaptive_averages_over_windows_of_unequal_size() -> None:
    differentiate(nn.Sequential(Conv(2, 3, 1), nn.AdaptiveAvgPool2d((4, 3)), nn.AdaptiveAvgPool2d(2)), (2, 9, 8), 2)


@pytest.mark.invariant(18)
def test_frozen_batch_statistics_are_constants() -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_var = torch.tensor([0.5, 1.0, 2.0])
    differentiate(nn.Sequential(Conv(2, 3, 3), norm), (2, 6, 5), 2)


class FunctionalBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, None, None, self.weight, training=True)


@pytest.mark.invariant(18)
@pytest.mark.parametrize(
    "front",
    [
        lambda: nn.Sequential(Conv(2, 2, 3), nn.BatchNorm2d(2)),
        lambda: nn.Sequential(Conv(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False).eval()),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 2), nn.BatchNorm1d(2)),
        FunctionalBatchNorm,
        lambda: nn.Sequential(Conv(2, 2, 3), nn.Dropout(0.5)),
    ],
)
@pytest.mark.parametrize("kind", ProgramKind)
def test_samples_that_depend_on_their_batch_are_refused(front: Callable[[], nn.Module], kind: ProgramKind) -> None:
    model = split(front(), (2, 5, 5))
    with pytest.raises(ProgramError, match="rest of its batch or on chance: use GroupNorm"):
        compile_function(model, kind, micro_batch=1)


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.ConvTranspose2d(2, 2, 3), "transposed convolution"),
        (nn.Sequential(Conv(2, 2, 1), nn.AvgPool2d(2, divisor_override=3)), "divisor"),
        (nn.Sequential(Conv(2, 2, 1), nn.Upsample(scale_factor=2)), "upsample"),
    ],
)
def test_an_operation_without_a_rule_is_named(module: nn.Module, named: str) -> None:
    with pytest.raises(ProgramError, match=named):
        export(compile_function(split(module, (2, 4, 4)), ProgramKind.PULLBACK, micro_batch=1))
