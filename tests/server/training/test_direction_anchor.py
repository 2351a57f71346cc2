"""The scale of directions is that of a run's first weights: in every round, after a restart, and in runs whose checkpoints are older than this rule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.algorithm.presets import preset
from heron_server.programs.publish import scales_of
from heron_server.storage.checkpoint import CheckpointStore
from heron_server.training.worker import TrainWorker
from tests.harness.simulated import run_simulation
from tests.server.running_server import RunningServer, tiny_config

Serve = Callable[..., RunningServer]


def grow(worker: TrainWorker) -> None:
    """Make every trained weight a thousand times as large."""
    front, head = worker._trainer.client_weights()
    worker._trainer.set_client_weights(1000 * front, 1000 * head)


def test_weights_that_grow_do_not_make_steps_that_grow(serve: Serve) -> None:
    worker = serve(trains=False, opens=False).parts.worker
    first = worker.inputs()
    grow(worker)
    grown = worker.inputs()
    assert grown.scales == first.scales
    assert np.abs(np.frombuffer(grown.front, "<f4")).max() > 500 * np.abs(np.frombuffer(first.front, "<f4")).max()


@pytest.mark.parametrize("older", [False, True])
def test_a_resumed_run_keeps_the_scale_of_its_first_weights(
    tmp_path: Path, program_cache_dir: Path, caplog: pytest.LogCaptureFixture, older: bool
) -> None:
    options: dict[str, Any] = {"run_dir": tmp_path / "run", "program_cache": program_cache_dir}
    first = RunningServer(tiny_config(**options), trains=False, opens=False)
    scales = first.parts.worker.inputs().scales
    grow(first.parts.worker)
    first.parts.worker.save()
    first.stop()
    if older:
        store = CheckpointStore(tmp_path / "run" / "checkpoints", 1)
        checkpoint = store.read()
        del checkpoint.state["first_scales"]
        store.write(checkpoint)
    with caplog.at_level(logging.WARNING):
        second = RunningServer(tiny_config(**options, resume=True), trains=False, opens=False)
    try:
        assert second.parts.worker.inputs().scales == scales
        present = scales_of(second.parts.worker._trainer.model, preset("heron"))
        assert present[0] > 500 * scales[0], "the weights came from the checkpoint"
        assert any("followed the weights" in record.getMessage() for record in caplog.records) is older
    finally:
        second.stop()


@pytest.mark.slow
@pytest.mark.parametrize("clients", [1, 2])
def test_few_clients_and_many_rounds_do_not_destroy_a_front(tmp_path: Path, clients: int) -> None:
    """The default rate: with scales that followed the weights both ended at 8 %."""
    torch.manual_seed(0)
    run = run_simulation(
        tmp_path / "run",
        data="digits:train",
        eval_data="digits:test",
        clients=clients,
        rounds=400,
        preset="heron",
        model_options="front_widths=4,2 front_strides=1,2",
        local_steps=10,
        batch_size=64,
    )
    assert run.summary["rounds"][-1]["test_accuracy"] > 0.94
