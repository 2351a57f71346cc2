"""Batch normalisation by the batch: programs equal torch's training mode, statistics included; the model itself stays as it is; what cannot be federated is refused."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import heron_server.programs.parity as parity_module
from heron_common.algorithm.plan import HeadTraining
from heron_common.algorithm.presets import preset
from heron_common.errors import ConfigurationError, ParityError, ProgramError
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.base import LARGE_BUFFER, named_frozen
from heron_server.models.batch_norm import flat_statistics, load_flat_statistics, running_statistics
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, cross_entropy, moving_state
from heron_server.programs.compile import compile_function
from heron_server.programs.export import ProgramCache, export
from heron_server.programs.parity import check_outputs, load_runner
from heron_server.programs.publish import complete_algorithm, fit_smoothing_radius, publish

ROWS = 6


def split(front: nn.Module, shape: tuple[int, ...], head: nn.Module | None = None, batch_statistics: bool = True) -> SplitModel:
    """A model in evaluation mode whose norms have weights and statistics of no special value."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        width = front.eval()(torch.zeros(2, *shape)).flatten(1).shape[1]
        head = head or nn.Sequential(nn.Flatten(), nn.Linear(width, 3))
        for part in (front, head):
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                if tensor.dim() == 1 and not name.endswith("running_var"):
                    tensor.normal_()
    return SplitModel(
        "test",
        front,
        auxiliary_head=head.eval(),
        back=nn.Identity(),
        sample_losses=cross_entropy,
        input_shape=shape,
        num_classes=3,
        batch_statistics=batch_statistics,
    )


def images() -> SplitModel:
    front = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.25), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, eps=0.1))
    return split(front, (2, 7, 7))


def vectors() -> SplitModel:
    return split(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh()), (5,))


def signals() -> SplitModel:
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    return split(nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3)), (2, 4), head)


def in_torch(model: SplitModel, x: torch.Tensor, y: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return what a step in training mode gives, its modules' buffers afterwards included."""
    front, head = copy.deepcopy(model.front).train(), copy.deepcopy(model.auxiliary_head).train()
    z = front(x)
    losses = cross_entropy(head(z), y)
    parameters = [*front.parameters(), *head.parameters()]
    gradients = torch.autograd.grad(losses.sum(), parameters)
    moved = [value for part in (front, head) for value in running_statistics(part).values()]
    found = {"activations": z, "losses": losses} | {f"new_statistics.{i}": value for i, value in enumerate(moved)}
    names = [f"client_model.{i}" for i, _ in enumerate(front.parameters())] + [
        f"auxiliary_head.{i}" for i, _ in enumerate(head.parameters())
    ]
    found |= {f"gradients.{name}": value for name, value in zip(names, gradients, strict=True)}
    return {name: value.detach().numpy() for name, value in found.items()}


def ran(model: SplitModel, x: torch.Tensor, y: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return what the exported gradient program gives."""
    function = compile_function(model, ProgramKind.GRADIENT, micro_batch=len(x))
    parts = (("client_model", model.front), ("auxiliary_head", model.auxiliary_head))
    feeds = {f"{name}.{i}": p.detach().numpy() for name, part in parts for i, p in enumerate(part.parameters())}
    feeds |= {f"statistics.{i}": value.numpy() for i, value in enumerate(model.statistics.values())} | {"x": x.numpy(), "y": y.numpy()}
    outputs = load_runner(export(function))({name: feeds[name] for name in function.input_names})
    return dict(zip(function.output_names, outputs, strict=True))


@pytest.mark.parametrize("make", [images, vectors, signals])
def test_a_program_is_a_step_of_torch_in_training_mode_and_leaves_the_model_alone(make: Callable[[], SplitModel]) -> None:
    model = make()
    before = {name: value.clone() for part in (model.front, model.auxiliary_head) for name, value in part.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    # A mean far from zero: a variance as a difference of squares would lose its digits.
    x, y = torch.randn(ROWS, *model.input_shape, generator=generator) + 20, torch.randint(0, 3, (ROWS,), generator=generator)
    expected, found = in_torch(model, x, y), ran(model, x, y)
    assert set(found) == set(expected)
    largest = max(float(np.abs(value).max()) for name, value in expected.items() if name.startswith("gradients."))
    for name, value in expected.items():
        size = largest if name.startswith("gradients.") else float(np.abs(value).max())
        assert float(np.abs(found[name] - value).max()) <= 2e-5 * size, name
    after = {name: value for part in (model.front, model.auxiliary_head) for name, value in part.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert not any(module.training for part in (model.front, model.auxiliary_head) for module in part.modules())


@pytest.mark.parametrize(("kind", "moves"), [("loss", 4), ("gradient", 4), ("front", 2), ("surrogate", 0), ("pullback", 0)])
def test_programs_of_base_passes_move_the_statistics_of_the_parts_that_they_run(kind: str, moves: int) -> None:
    function = compile_function(signals(), ProgramKind(kind), micro_batch=ROWS)
    assert [name for name in function.input_names if "statistics" in name] == [f"statistics.{i}" for i in range(moves)]
    assert [name for name in function.output_names if "statistics" in name] == [f"new_statistics.{i}" for i in range(moves)]


def test_a_pullback_goes_through_the_statistics_of_the_batch() -> None:
    model = vectors()
    program = export(compile_function(model, ProgramKind.PULLBACK, micro_batch=ROWS))
    assert check_outputs(model, ProgramKind.PULLBACK, program=program, micro_batch=ROWS, seed=1) <= 2e-5


@pytest.mark.parametrize("name", ["heron", "heron-server-loss", "ho-sfl"])
def test_finite_differences_are_the_derivative_through_the_statistics(name: str, program_cache: ProgramCache) -> None:
    small = dataclasses.replace(preset(name), plan=dataclasses.replace(preset(name).plan, batch_size=ROWS), warmup_rounds=0)
    model = dataclasses.replace(vectors(), name="vectors by batch", back=vectors().auxiliary_head)
    algorithm, _ = complete_algorithm(small, model)
    assert (algorithm.plan.direction_groups, algorithm.plan.micro_batch) == (1, ROWS)
    _, report = publish(fit_smoothing_radius(algorithm, model, cache=program_cache, seed=0), model, cache=program_cache, seed=0)
    assert report.difference_error is not None and report.difference_error <= 0.05


def test_statistics_are_neither_weights_nor_frozen_however_large_they_are() -> None:
    wide = nn.Sequential(nn.Linear(2, LARGE_BUFFER + 1), nn.BatchNorm1d(LARGE_BUFFER + 1))
    spec = split(wide, (2,)).to_spec()
    assert [s.name for s in spec.statistics] == ["front.1.running_mean", "front.1.running_var"]
    assert spec.base == () and named_frozen(wide) == []
    assert {"1.running_mean", "1.running_var"} <= set(moving_state(wide)), "a checkpoint holds them"
    assert not {s.name for s in spec.client_model} & {"1.running_mean", "1.running_var"}


def test_statistics_go_into_a_flat_buffer_and_back_and_no_variance_is_negative() -> None:
    model = images()
    flat = flat_statistics(list(model.statistics.values()))
    load_flat_statistics(model.statistics, -1 - np.abs(flat))
    assert torch.equal(model.front.get_buffer("1.running_mean"), torch.from_numpy(-1 - np.abs(flat[:3])))
    assert not model.front.get_buffer("1.running_var").any()
    with pytest.raises(ValueError, match="expected 10 running statistics, got 9"):
        load_flat_statistics(model.statistics, flat[:-1])


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        (lambda: nn.BatchNorm2d(2, track_running_stats=False), "track_running_stats=True"),
        (lambda: nn.BatchNorm2d(2, momentum=None), "momentum such as 0.1"),
        (lambda: nn.SyncBatchNorm(2), "BatchNorm1d, 2d or 3d"),
        (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5).train()), "or on chance"),
    ],
)
def test_a_norm_that_cannot_be_federated_is_refused(norm: Callable[[], nn.Module], words: str) -> None:
    model = images()
    layer = norm()
    modes = {module: module.training for module in layer.modules()}
    changed = dataclasses.replace(model, front=nn.Sequential(model.front.get_submodule("3"), layer), input_shape=(3, 5, 5))
    for module in layer.modules():
        module.training = modes[module] and isinstance(module, nn.Dropout)
    with pytest.raises(ProgramError, match=words):
        compile_function(changed, ProgramKind.LOSS, micro_batch=ROWS)


def test_the_resnet_moves_no_statistics_while_it_is_built_and_refuses_parts_of_batches() -> None:
    model = build_model(
        "resnet",
        {"width": 4, "groups": 1, "blocks": [1, 1], "norm": "batch"},
        data=DataSpecification("test", (1, 8, 8), num_classes=10),
        seed=0,
    )
    counts = [value for part in (model.front, model.back) for name, value in part.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counts) == 6 and not any(counts)
    exact = preset("cse-fsl")
    parts = dataclasses.replace(exact, plan=dataclasses.replace(exact.plan, micro_batch=2))
    with pytest.raises(ConfigurationError, match="micro_batch 2 would normalise each part by itself"):
        complete_algorithm(parts, model)


def test_a_head_that_the_server_aligns_may_not_normalise_by_the_batch_but_its_front_may() -> None:
    with pytest.raises(ConfigurationError, match=r"head_training=alignment .* \(head\.2\)"):
        complete_algorithm(preset("fsl-sage"), signals())
    algorithm, _ = complete_algorithm(preset("fsl-sage"), images())
    assert algorithm.plan.head_training is HeadTraining.ALIGNMENT and algorithm.plan.micro_batch == algorithm.plan.batch_size


def test_a_gradient_that_one_draw_of_samples_spoils_passes_and_one_that_every_draw_spoils_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dataclasses.replace(vectors(), batch_statistics=False, front=nn.Sequential(nn.Conv1d(2, 2, 1)), input_shape=(2, 2))
    draws: list[float] = []

    def errors(*_: object, **__: object) -> dict[str, float]:
        return {"gradients.client_model.0": draws.pop(0)}

    monkeypatch.setattr(parity_module, "_output_errors", errors)
    monkeypatch.setattr(parity_module, "load_runner", lambda program: None)
    draws[:] = [1e-3, 1e-6]
    assert check_outputs(model, ProgramKind.PULLBACK, program=b"", micro_batch=1, seed=0) == 1e-6
    draws[:] = [1e-3] * 3
    with pytest.raises(ParityError, match=r"1\.00e-03"):
        check_outputs(model, ProgramKind.PULLBACK, program=b"", micro_batch=1, seed=0)
    for last, passes in ((1e-3, True), (1e-2, False)):
        draws[:] = [1e-2, 1e-2, last]
        with contextlib.nullcontext() if passes else pytest.raises(ParityError):
            check_outputs(images(), ProgramKind.GRADIENT, program=b"", micro_batch=ROWS, seed=0)
