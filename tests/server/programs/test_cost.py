"""Choosing direction groups and micro-batch by counting, and completing a plan."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.algorithm.plan import BACKWARD_EQUIVALENTS, Estimator
from heron_common.algorithm.plan_checks import plan_mistakes
from heron_common.algorithm.presets import preset
from heron_common.errors import ConfigurationError, HeronError
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.programs.cost import (
    MICRO_BATCH_BYTES,
    PERTURBATION_FLOPS_PER_WEIGHT,
    PERTURBATION_SHARE,
    FlopCount,
    choose_direction_groups,
    choose_micro_batch,
    client_cost,
)
from heron_server.programs.publish import complete_algorithm
from tests.harness.transformers import build, next_token
from tests.server.builders import plan


@given(st.integers(1, 200), st.integers(1, 10**6), st.integers(0, 10**9))
def test_groups_are_the_most_that_perturb_within_their_share(batch: int, weights: int, flops: int) -> None:
    groups = choose_direction_groups(batch, weights, flops)
    share = PERTURBATION_SHARE * 2 * batch * flops
    fits = [g for g in range(1, batch + 1) if batch % g == 0 and g * weights * PERTURBATION_FLOPS_PER_WEIGHT <= share]
    assert groups == (fits[-1] if fits else 1)


@given(st.integers(1, 12), st.integers(1, 64), st.integers(1, 2 * MICRO_BATCH_BYTES))
def test_a_micro_batch_divides_its_group_and_fits_in_memory_if_anything_does(groups: int, size: int, sample_bytes: int) -> None:
    chosen = choose_micro_batch(plan(batch_size=groups * size, direction_groups=groups), sample_bytes, None)
    fits = [m for m in range(1, size + 1) if size % m == 0 and m * sample_bytes <= MICRO_BATCH_BYTES]
    assert chosen == (fits[-1] if fits else 1)


@given(groups=st.integers(1, 64), size=st.integers(1, 16), sample_bytes=st.integers(1, 1 << 22), num_parameters=st.integers(1, 1 << 20))
def test_a_run_takes_whole_groups_where_activations_and_their_weights_fit(
    groups: int, size: int, sample_bytes: int, num_parameters: int
) -> None:
    several = plan(batch_size=groups * size, direction_groups=groups)
    chosen = choose_micro_batch(several, sample_bytes, num_parameters)
    done = dataclasses.replace(several, micro_batch=chosen)
    assert plan_mistakes(done) == []
    if done.directions_per_run == 1:
        assert chosen == choose_micro_batch(several, sample_bytes, None)
    else:
        assert chosen * sample_bytes <= MICRO_BATCH_BYTES and done.directions_per_run * 4 * num_parameters <= MICRO_BATCH_BYTES
    larger = [g for g in range(done.directions_per_run + 1, groups + 1) if groups % g == 0]
    fit = [g for g in larger if g * size * sample_bytes <= MICRO_BATCH_BYTES and g * 4 * num_parameters <= MICRO_BATCH_BYTES]
    assert fit == [], "more would have fitted"
    exact = dataclasses.replace(several, estimator=Estimator.FIRST_ORDER)
    assert choose_micro_batch(exact, sample_bytes, num_parameters) == choose_micro_batch(exact, sample_bytes, None)


def test_flops_and_bytes_are_those_of_the_layers(tiny_model: SplitModel) -> None:
    convolution = 2 * (2 * 2 * 2) * (1 * 3 * 3)
    head = 2 * 8 * 3
    front_weights, head_weights = (2 * 9 + 2) + (2 + 2), 8 * 3 + 3
    alone, together = client_cost(tiny_model, with_head=False), client_cost(tiny_model, with_head=True)
    assert alone.forward_flops == convolution and together.forward_flops == convolution + head
    assert alone.num_parameters == front_weights and together.num_parameters == front_weights + head_weights
    assert alone.activation_bytes == together.activation_bytes == 2 * 8 * 4, "two neighbouring layers of 2x2x2 floats"


@pytest.mark.parametrize(
    ("layers", "x"),
    [
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4)), (2, 2, 8)),
        (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=2), (2, 4, 9, 9)),
        (lambda: nn.ConvTranspose2d(4, 2, 2, stride=2), (2, 4, 3, 3)),
        (lambda: nn.LSTM(4, 5, batch_first=True, bidirectional=True), (2, 6, 4)),
        (lambda: nn.GRU(4, 5, num_layers=2), (6, 2, 4)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 5, 8)),
    ],
    ids=["conv1d", "conv2d", "transposed", "lstm", "gru", "encoder"],
)
def test_the_count_is_torchs_own_to_the_digit(layers: Callable[[], nn.Module], x: tuple[int, ...]) -> None:
    module, example = layers(), torch.ones(x)
    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        module(example)
    with torch.no_grad(), FlopCount() as count:
        module(example)
    # None of a fused LSTM is counted by either.
    assert count.total == torchs.get_total_flops()
    assert count.total > 0 or isinstance(module, nn.LSTM)


def test_shapes_without_numbers_are_counted_alike() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    with FakeTensorMode() as fake, torch.no_grad(), FlopCount() as count:
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))(fake.from_tensor(torch.ones(2, 1, 6, 6)))
    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        module(torch.ones(2, 1, 6, 6))
    assert count.total == torchs.get_total_flops()


@pytest.mark.parametrize("family", ["cnn", "resnet"])
def test_a_familys_cost_is_what_torchs_own_counter_says(family: str) -> None:
    model = build_model(family, {}, data=DataSpecification("test", (3, 32, 32), num_classes=10), seed=0)
    x, y = (torch.from_numpy(array) for array in model.random_batch(2, np.random.Generator(np.random.Philox(key=0))))
    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        model.sample_losses(model.auxiliary_head(model.front(x)), y)
    assert client_cost(model, with_head=True).forward_flops == torchs.get_total_flops() // 2


def test_blocks_that_run_twice_are_counted_where_gradients_are_computed(tmp_path: Path) -> None:
    one, two = (build(tmp_path, "gpt2", next_token(8), cut, head_blocks=1) for cut in ("1", "2"))
    block = client_cost(two, with_head=True).forward_flops - client_cost(one, with_head=True).forward_flops
    # Of the front's blocks and the head's one behind them all but the last; a front alone has one less.
    assert [client_cost(two, with_head).recomputed_flops for with_head in (True, False)] == [2 * block, block]
    assert [client_cost(one, with_head).recomputed_flops for with_head in (True, False)] == [block, 0]
    for name, with_head, blocks in (("cse-fsl", True, 2), ("sflv2", False, 1), ("heron", True, 0)):
        share = complete_algorithm(preset(name), two)[0].plan.backward_equivalents - BACKWARD_EQUIVALENTS
        assert share * 256 == math.ceil(256 * blocks * block / client_cost(two, with_head).forward_flops)


def test_a_small_server_starts_without_torchs_compiler() -> None:
    words = """
import sys
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.registry import build_model
from heron_server.programs.cost import client_cost
from heron_server.training.trainer import Trainer, TrainerSettings
model = build_model("cnn", {}, data=DataSpecification("test", (1, 8, 8), num_classes=10), seed=0)
client_cost(model, with_head=True)
Trainer(model, TrainerSettings("adam", 1e-3, server_weight_decay=0.0, server_momentum=0.0, device="cpu", precision="fp32"), trains_head=True).tensors()
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True).stdout == "False\n"


def test_counting_leaves_no_hooks_behind(tiny_model: SplitModel) -> None:
    client_cost(tiny_model, with_head=True)
    modules = [*tiny_model.front.modules(), *tiny_model.auxiliary_head.modules()]
    assert not any(module._forward_hooks for module in modules)


def completed(model: SplitModel, name: str = "heron", around: dict[str, Any] | None = None, **changes: Any) -> Any:
    row = preset(name)
    return complete_algorithm(dataclasses.replace(row, plan=dataclasses.replace(row.plan, **changes), **(around or {})), model)[0].plan


@pytest.mark.parametrize("name", ["heron", "heron-paper", "heron-server-loss", "frozen"])
def test_every_preset_completes_to_a_plan_without_zeros(tiny_model: SplitModel, name: str) -> None:
    done = completed(tiny_model, name)
    assert done.batch_size % done.direction_groups == 0
    assert plan_mistakes(done) == []


def test_what_was_given_is_kept(tiny_model: SplitModel) -> None:
    done = completed(tiny_model, batch_size=12, direction_groups=3, micro_batch=2)
    assert (done.direction_groups, done.micro_batch) == (3, 2)


def test_the_choice_depends_on_counts_only(tiny_model: SplitModel) -> None:
    def chosen() -> tuple[int, int]:
        done = completed(tiny_model)
        return done.direction_groups, done.micro_batch

    first = chosen()
    with torch.no_grad():
        for parameter in tiny_model.front.parameters():
            parameter.zero_()
    assert chosen() == first


def test_all_mistakes_of_a_plan_come_at_once(tiny_model: SplitModel) -> None:
    with pytest.raises(ConfigurationError) as caught:
        completed(
            tiny_model,
            "heron-server-loss",
            {"schedule": ServerSchedule.SEQUENTIAL},
            local_steps=2,
            upload_interval=3,
            batch_size=8,
            direction_groups=2,
            micro_batch=3,
        )
    for part in ("upload_interval 3", "local_steps 2", "micro_batch 3", "group of 4", "sequential"):
        assert part in str(caught.value)


def test_groups_that_do_not_divide_the_batch_are_named_and_nothing_else_is() -> None:
    model = build_model("cnn", {}, data=DataSpecification("test", (1, 8, 8), num_classes=10), seed=0)
    with pytest.raises(ConfigurationError) as caught:
        completed(model, batch_size=64, direction_groups=7)
    assert "direction_groups 7" in str(caught.value) and "batch_size 64" in str(caught.value)
    assert "micro_batch" not in str(caught.value)


def test_a_cut_of_one_float_completes_or_is_refused_with_a_sentence() -> None:
    try:
        model = build_model(
            "cnn", {"front_widths": [1], "front_strides": [4]}, data=DataSpecification("test", (1, 4, 4), num_classes=3), seed=0
        )
        completed(model, batch_size=4)
    except HeronError as exc:
        assert "front" in str(exc)
