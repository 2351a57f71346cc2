"""The client learns, honestly: on a narrow front, against the frozen control and exact gradients; `heron` through real processes, the others simulated, in the slow suite.

The task: digits, front of two 3x3 convolutions 1->4 and 4->1 with stride 2 (87 weights, 16 floats a sample at the cut), four clients.
Margins over `frozen`, in points of test accuracy, come from trials with other seeds (0, 3 and 4: 90 to 97 against 73 to 81) and are well inside them:
heron 8, heron-server-loss 8, heron-paper 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_common.data.digits import DIGITS_SPECIFICATION
from heron_common.data.reading import SampleReader
from heron_common.data.sources import open_source
from heron_server.models.registry import build_model
from tests.harness.cluster import NARROWEST, Cluster, log_of, wait_for_exit

MARGINS = {"heron": 0.08, "heron-server-loss": 0.08, "heron-paper": 0.04}
ROUNDS = 50
EXACT_GAP = 0.05


def _train_through_processes(directory: Path, preset: str, seed: int) -> float:
    with Cluster(directory) as cluster:
        server = cluster.server(
            preset=preset, clients=4, rounds=ROUNDS, model_options=NARROWEST, seed=seed, server_schedule=_schedule(preset)
        )
        clients = cluster.clients(4)
        assert [wait_for_exit(process, 240) for process in [*clients, server]] == [0] * 5
        assert not [line for client in clients for line in log_of(client).splitlines() if "does not answer" in line], (
            "an undisturbed run is refused nothing"
        )
        accuracies = [r["test_accuracy"] for r in cluster.summary()["rounds"]]
    assert len(accuracies) == ROUNDS
    # The mean of the last five rounds: one round's score moves by half a point from one sample order to another.
    return float(np.mean(accuracies[-5:]))


def _train_simulated(preset: str, seed: int) -> float:
    """Train with the same client and server code in one process; that a networked run ends with the same bits is tested in test_simulation.py."""
    summary = simulate(
        simulation_config(
            preset=preset,
            data="digits",
            clients=4,
            rounds=ROUNDS,
            model_options=NARROWEST,
            seed=seed,
            **({"server_schedule": schedule} if (schedule := _schedule(preset)) else {}),
        )
    )
    return float(np.mean([r["test_accuracy"] for r in summary["rounds"]][-5:]))


def _schedule(preset: str) -> str | None:
    return None if preset == "heron-paper" else "lockstep"


def _train_in_plain_torch(seed: int, train_front: bool) -> float:
    """Train front and back together by backpropagation (or the back alone) on as many batches as the server sees."""
    torch.manual_seed(seed)
    model = build_model("cnn", {"front_widths": (4, 1), "front_strides": (1, 2)}, data=DIGITS_SPECIFICATION, seed=seed)
    network = nn.Sequential(model.front, model.back)
    parameters = list(network.parameters()) if train_front else list(model.back.parameters())
    optimiser = torch.optim.Adam(parameters, 2e-3)
    train, test = open_source("digits:train"), open_source("digits:test")
    x, y = (torch.from_numpy(a) for a in SampleReader(train, DIGITS_SPECIFICATION).batch(np.arange(train.num_examples)))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(ROUNDS * 10 * 4):
        rows = torch.randint(0, len(y), (64,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimiser.step()
    with torch.no_grad():
        xt, yt = (torch.from_numpy(a) for a in SampleReader(test, DIGITS_SPECIFICATION).batch(np.arange(test.num_examples)))
        return float((network(xt).argmax(1) == yt).float().mean())


def _check(seed: int, train: Mapping[str, Callable[[], float]]) -> None:
    frozen = _train_simulated("frozen", seed)
    scores = {preset: trained() for preset, trained in train.items()}
    print(f"seed {seed}: frozen {frozen:.3f}, {scores}")
    short = {preset: score for preset, score in scores.items() if score < frozen + MARGINS[preset]}
    assert short == {}, f"frozen reached {frozen:.3f}"


def test_heron_beats_a_frozen_front_by_its_margin() -> None:
    _check(7, {"heron": partial(_train_simulated, "heron", 7)})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_every_preset_beats_a_frozen_front_by_its_margin(tmp_path: Path, seed: int) -> None:
    exact, frozen = _train_in_plain_torch(seed, True), _train_in_plain_torch(seed, False)
    assert exact - frozen >= EXACT_GAP, "the task must be one where freezing the front costs something"
    others = {preset: partial(_train_simulated, preset, seed) for preset in MARGINS if preset != "heron"}
    _check(seed, {"heron": lambda: _train_through_processes(tmp_path, "heron", seed), **others})
