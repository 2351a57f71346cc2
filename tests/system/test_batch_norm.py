"""Runs that normalise by the batch, round for round, against plain torch in training mode; their ledger, their logs, their end and their going on."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from heron_cli.audit import prove
from heron_cli.simulation.configuration import simulation_config
from heron_common.algorithm.plan_counts import round_bytes
from heron_common.data.digits import DIGITS_SPECIFICATION
from heron_common.data.reading import SampleReader
from heron_common.data.sources import open_source
from heron_common.errors import ConfigurationError
from heron_server.models.registry import build_model, parse_model_options
from heron_server.programs.publish import complete_algorithm
from tests.harness.simulated import differing, run_simulation
from tests.system.test_algorithms_ledger import ledger
from tests.system.test_algorithms_reference import BATCH, CLIENTS, SEED, STEPS, TOLERANCE, Samples, average

OPTIONS = "width=4 groups=1 blocks=1,1 norm=batch"
ROUNDS, RATE = 3, 0.1
COMMON: dict[str, Any] = {"model": "resnet", "model_options": OPTIONS, "local_steps": STEPS, "batch_size": BATCH, "seed": SEED}
EXACT: dict[str, Any] = {
    **COMMON,
    "preset": "cse-fsl",
    "rounds": ROUNDS,
    "server_schedule": "lockstep",
    "client_optimiser": "sgd",
    "server_optimiser": "sgd",
    "client_learning_rate": RATE,
    "server_learning_rate": RATE,
    "final_rate_fraction": 1.0,
}
STATISTICS = 4 * 2 * 3
"""Mean and variance of four channels in three layers: the stem's and two of the front's block."""


def reference() -> Iterator[tuple[dict[str, torch.Tensor], float]]:
    """Train with plain torch; yield weights and statistics at every round boundary, named as in checkpoints, and the loss on the test data."""
    model = build_model("resnet", parse_model_options(OPTIONS), data=DIGITS_SPECIFICATION, seed=SEED)
    front, head, back = model.front.train(), model.auxiliary_head.train(), model.back.train()
    server = torch.optim.SGD(back.parameters(), RATE)
    samples, tests = Samples(), SampleReader(open_source("digits:test"), DIGITS_SPECIFICATION)
    for round_index in range(ROUNDS):
        fronts = {name: copy.deepcopy(front) for name in CLIENTS}
        heads = {name: copy.deepcopy(head) for name in CLIENTS}
        steps = {name: torch.optim.SGD([*fronts[name].parameters(), *heads[name].parameters()], RATE) for name in CLIENTS}
        for step in range(STEPS):
            for name in CLIENTS:
                x, y = samples.batch(name, round_index, step)
                z = fronts[name](x)
                server.zero_grad()
                cross_entropy(back(z.detach()), y).backward()
                server.step()
                steps[name].zero_grad()
                cross_entropy(heads[name](z), y).backward()
                steps[name].step()
        average(front, fronts.values())
        average(head, heads.values())
        parts = {"front": front, "head": head, "back": back}
        found = {
            f"{part}.{key}": value.clone() for part, m in parts.items() for key, value in m.state_dict().items() if "tracked" not in key
        }
        x, y = (torch.from_numpy(array) for array in tests.batch(range(tests.num_examples)))
        with torch.no_grad():
            loss = float(cross_entropy(back.eval()(front.eval()(x)), y))
        front.train(), back.train()
        yield found, loss


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_simulation(tmp_path_factory.mktemp("exact") / "run", **EXACT)


def test_every_round_ends_where_plain_torch_ends_statistics_included(exact: Any) -> None:
    for round_index, (wanted, loss) in enumerate(reference()):
        after = exact.boundaries[round_index + 1]
        for name, value in wanted.items():
            torch.testing.assert_close(after[name], value, **TOLERANCE, msg=lambda text, r=round_index, n=name: f"round {r}, {n}: {text}")
        # Evaluation normalises by the statistics that clients came to together.
        assert exact.summary["rounds"][round_index]["test_loss"] == pytest.approx(loss, rel=1e-3)
    for name in ("front.1.running_mean", "front.3.norm2.running_var", "back.0.norm1.running_mean"):
        assert float((exact.boundaries[-1][name] - exact.boundaries[0][name]).abs().max()) > 1e-2


def test_a_run_goes_on_with_the_statistics_of_its_checkpoint(exact: Any, tmp_path: Path) -> None:
    rounds = {"run_dir": tmp_path / "run", **EXACT}
    run_simulation(**{**rounds, "rounds": 2})
    resumed = run_simulation(**rounds, resume=True)
    assert differing(resumed.boundaries[-1], exact.boundaries[-1]) == []


@pytest.mark.parametrize("variant", [{"preset": "heron", "update_encoding": "log"}, {"preset": "frozen"}, EXACT], ids=lambda v: v["preset"])
def test_statistics_are_in_the_ledger_and_move_in_every_preset(variant: dict[str, Any], tmp_path: Path, exact: Any) -> None:
    options = {**COMMON, "rounds": ROUNDS, **variant}
    run = exact if variant is EXACT else run_simulation(tmp_path / "run", **options)
    config = simulation_config(clients=len(CLIENTS), **options)
    model = build_model("resnet", parse_model_options(OPTIONS), data=DIGITS_SPECIFICATION, seed=SEED)
    algorithm, _ = complete_algorithm(config.algorithm, model)
    spec = model.to_spec()
    assert algorithm.plan.direction_groups == 1 and algorithm.plan.micro_batch == BATCH
    bytes_up = [round_bytes(algorithm.plan_for_round(index, ROUNDS), spec)["up"]["update"] for index in range(ROUNDS)]
    weights = 4 * sum(t.num_elements for t in (*spec.client_model, *spec.auxiliary_head))
    sent = {"heron": (ROUNDS - 1) * 8 * STEPS, "frozen": 0, "cse-fsl": ROUNDS * weights}[options["preset"]]
    for row in run.summary["clients"].values():
        assert ledger(row)["up"]["update"] == sum(bytes_up) == sent + ROUNDS * 4 * STATISTICS
    for before, after in zip(run.boundaries[:-1], run.boundaries[1:], strict=True):
        assert not torch.equal(before["front.1.running_var"], after["front.1.running_var"])
    if options["preset"] == "heron":
        assert sum(proved.replayed for proved in prove(tmp_path / "run")) == len(CLIENTS) * (ROUNDS - 1)


USERS = """
from torch import nn

def build(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, 1, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, num_classes)
    )
"""


def test_a_users_model_normalises_by_the_batch_where_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "normalising.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    options = {**COMMON, "model": "python:normalising:build", "cut": "2", "preset": "frozen", "rounds": 2}
    run = run_simulation(tmp_path / "run", **{**options, "model_options": "batch_norm=batch"})
    moved = [not torch.equal(run.boundaries[1][name], run.boundaries[2][name]) for name in ("front.1.running_mean", "back.4.running_mean")]
    assert moved == [True, True] and math.isfinite(run.summary["rounds"][-1]["test_loss"])
    with pytest.raises(ConfigurationError, match="batch_norm=batch to --model-options"):
        run_simulation(tmp_path / "refused", **{**options, "model_options": ""})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"micro_batch": 4}, ["micro_batch 4", "norm=batch (front.1)", "batch_size 24", "set micro_batch to 24", "norm=group"]),
        ({"preset": "heron", "direction_groups": 2}, ["direction_groups 2", "norm=batch (front.1)", "set direction_groups to 1"]),
        (
            {"preset": "heron", "difference": "central", "upload_interval": 2},
            ["difference=central", "upload_interval 2", "norm=batch (front.1)", "upload_interval to 1"],
        ),
    ],
)
def test_what_would_normalise_by_less_than_a_batch_is_refused_at_start(options: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_simulation(tmp_path / "run", **{**EXACT, **options})
    assert all(word in str(caught.value) for word in words), str(caught.value)
