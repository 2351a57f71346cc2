"""What first-order programs are tested with: a front with a linear head, samples, and what autograd says of both in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from heron_common.specification.model_spec import ProgramKind
from heron_server.models.split_model import SplitModel, cross_entropy
from heron_server.programs.parity import load_runner

Arrays = dict[str, np.ndarray[Any, Any]]


def split(front: nn.Module, shape: tuple[int, ...], classes: int = 3) -> SplitModel:
    """A model with a linear head behind `front`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in front.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter)
        width = front(torch.zeros(2, *shape)).flatten(1).shape[1]
        head = nn.Sequential(nn.Flatten(), nn.Linear(width, classes))
    return SplitModel(
        "test", front, auxiliary_head=head, back=nn.Identity(), sample_losses=cross_entropy, input_shape=shape, num_classes=classes
    )


def samples(model: SplitModel, rows: int, tokens: bool = False) -> Arrays:
    generator = np.random.default_rng(5)
    x = generator.integers(0, 3, (rows, *model.input_shape)) if tokens else generator.standard_normal((rows, *model.input_shape))
    cut_gradient = generator.standard_normal((rows, *model.to_spec().cut.shape)).astype(np.float32)
    return {"x": x.astype(np.float32), "y": generator.integers(0, model.num_classes, rows), "cut_gradient": cut_gradient}


def run(program: bytes, model: SplitModel, data: Arrays) -> Arrays:
    graph = onnx.load_from_string(program).graph
    weights = {
        f"{name}.{i}": p.detach().numpy()
        for name, part in (("client_model", model.front), ("auxiliary_head", model.auxiliary_head))
        for i, p in enumerate(part.parameters())
    }
    everything = {**data, **weights}
    found = load_runner(program)({value.name: everything[value.name] for value in graph.input})
    return dict(zip((value.name for value in graph.output), found, strict=True))


def autograd(model: SplitModel, kind: ProgramKind, data: Arrays) -> Arrays:
    """Every output of a first-order program, in float64, by autograd over the model itself."""
    front, head = copy.deepcopy(model.front).double(), copy.deepcopy(model.auxiliary_head).double()
    z = front(torch.from_numpy(data["x"]).double())
    losses = model.sample_losses(head(z), torch.from_numpy(data["y"]))
    products = (z * torch.from_numpy(data["cut_gradient"]).double()).flatten(1).sum(1)
    parts = {"client_model": front, "auxiliary_head": head} if kind is ProgramKind.GRADIENT else {"client_model": front}
    leaves = {f"gradients.{name}.{i}": p for name, part in parts.items() for i, p in enumerate(part.parameters())}
    total = (losses if kind is ProgramKind.GRADIENT else products).sum()
    values = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    if kind is ProgramKind.GRADIENT:
        values = {"activations": z, "losses": losses, **values}
    return {name: value.detach().numpy() for name, value in values.items()}


def assert_equal(found: Arrays, wanted: Arrays, tolerance: float = 1e-5) -> None:
    assert list(found) == list(wanted)
    for name, want in wanted.items():
        assert found[name].shape == want.shape and found[name].dtype == np.float32
        assert np.abs(found[name] - want).max() <= tolerance * max(np.abs(want).max(), 1e-3), name
