"""A run that unlearns what it knew goes back to its best checkpoint: the rule against a naive twin, and whole runs, killed and audited."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from heron_cli.audit import prove
from heron_cli.cli import main
from heron_common.algorithm.presets import preset
from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import Task
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.exports.trained_model import load_trained
from heron_server.metrics import ServerMetrics
from heron_server.storage.checkpoint import CheckpointStore
from heron_server.training.best_checkpoint import BestCheckpoint
from heron_server.training.recovery import CHANCE_ROUNDS, Recovery, Return
from tests.harness.simulated import boundaries_of, run_simulation
from tests.server.rounds.interrupted import take_part
from tests.server.rounds.killed_run import Run, unlike
from tests.server.wire_client import joined, upload_messages

CHANCE = math.log(10)
LOSSES = [2.3, 0.9, 0.4, 2.31, 5.0, math.nan, 1.0, 0.8]
"""By round: best in the third, so by what the run was after two; destroyed in the fourth, and gone back from after the sixth."""


def after(losses: list[float | None], chance: float | None = CHANCE, missing: frozenset[int] = frozenset()) -> Recovery:
    known = Recovery()
    for index, loss in enumerate(losses):
        known = known.after_round(index + 1, loss, scored=None if index in missing else index, chance=chance)
    return known


def naive(losses: list[float | None], chance: float | None, missing: frozenset[int]) -> list[tuple[int, int]]:
    """Look at the whole history after every round."""
    returns: list[tuple[int, int]] = []
    for end in range(1, len(losses) + 1):
        seen = [(index, loss) for index, loss in enumerate(losses[:end]) if loss is not None]
        finite = [(index, loss) for index, loss in seen if math.isfinite(loss)]
        level = chance if chance is not None else (finite[0][1] if finite else math.nan)
        candidates = [(loss, index) for index, loss in finite if index not in missing]
        since = [loss for index, loss in seen if not returns or index >= returns[-1][0]]
        at_chance = [not math.isfinite(loss) or loss >= 0.98 * level for loss in since[-CHANCE_ROUNDS:]]
        if losses[end - 1] is None or at_chance != [True] * CHANCE_ROUNDS or not candidates or min(candidates)[0] >= 0.7 * level:
            continue
        returns.append((end, min(candidates)[1]))
    return returns


round_losses = st.lists(st.none() | st.sampled_from([0.3, 0.5, 1.5, 2.3, 2.4, 9.0, math.nan, math.inf]), max_size=25)


@settings(max_examples=300, deadline=None)
@given(round_losses, st.sampled_from([CHANCE, None]), st.frozensets(st.integers(0, 24)))
@example([*LOSSES], CHANCE, frozenset())
def test_the_rule_is_a_naive_one_and_its_state_survives_json(
    losses: list[float | None], chance: float | None, missing: frozenset[int]
) -> None:
    known = after(losses, chance, missing)
    assert [(one.after_round, one.to_round) for one in known.returns] == naive(losses, chance, missing)
    assert known.step_factor == 0.5 ** len(known.returns)
    assert Recovery.of(json.loads(json.dumps(known.state(), allow_nan=False))) == known


def test_a_run_that_never_learnt_or_only_stumbles_goes_nowhere() -> None:
    assert after([2.3] * 20).returns == ()
    assert after([0.4, 2.4, 2.4, 0.4] * 5).returns == ()
    assert after([*LOSSES]).returns == (Return(6, 2),)
    assert after([1000.0, 10.0, *[1000.0] * 3], chance=None).returns == (Return(5, 1),)
    assert Recovery.of(None) == Recovery()


def test_half_the_step_is_half_the_rate_of_the_plan() -> None:
    algorithm = preset("heron")
    whole, half = (algorithm.plan_for_round(5, 10, step_factor=factor) for factor in (1.0, 0.5))
    assert half.learning_rate == whole.learning_rate / 2
    assert half.relative_step == whole.relative_step / 2


def kept_rounds(run_dir: Path) -> list[int]:
    return [entry["completed_rounds"] for entry in json.loads((run_dir / "checkpoints" / "manifest.json").read_text())]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the losses of server steps be those of LOSSES."""
    real = BestCheckpoint.after_round

    def after_round(self: BestCheckpoint, completed: int, _: float | None, load: Any) -> bool:
        return real(self, completed, LOSSES[completed - 1], load)

    monkeypatch.setattr(BestCheckpoint, "after_round", after_round)
    yield


def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith("random.")}


OPTIONS: dict[str, Any] = {"preset": "heron", "update_encoding": "log", "rounds": len(LOSSES), "local_steps": 2, "batch_size": 8}


def test_a_run_goes_back_whole_and_an_audit_follows(scripted: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    with caplog.at_level(logging.ERROR, "heron_server"):
        run = run_simulation(run_dir, **OPTIONS)
    assert sum("goes back to its best checkpoint" in record.getMessage() for record in caplog.records) == 1, "said once"
    assert run.summary["returns"] == [{"after_round": 6, "to_round": 2}] and run.summary["step_factor"] == 0.5
    assert run.summary["best_round"] == 2 and run.summary["best_loss"] == 0.4
    assert unlike(moved(run.boundaries[6]), moved(run.boundaries[2])) == []
    assert unlike(run.boundaries[5], run.boundaries[2]) and unlike(run.boundaries[7], run.boundaries[6])
    proved = list(prove(run_dir))
    assert [one.returned_to for one in proved if one.round_index == 5] == [2] and proved[-1].round_index == len(LOSSES) - 1
    assert sum(one.returned_to is not None for one in proved) == 1


def test_the_best_is_kept_beside_the_newest_and_can_be_exported(scripted: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    run_simulation(run_dir, **{**OPTIONS, "update_encoding": "dense"}, keep_checkpoints=1)
    assert kept_rounds(run_dir) == [2, len(LOSSES)] and len(boundaries_of(run_dir)) == 2
    assert load_trained(run_dir, "best").completed_rounds == 2
    output = tmp_path / "best.safetensors"
    assert main(["export", "--run-dir", str(run_dir), "--format", "safetensors", "--output", str(output), "--checkpoint", "best"]) == 0
    assert "after 2 rounds" in capsys.readouterr().out and output.exists()
    with pytest.raises(ConfigurationError, match="no best checkpoint is known"):
        CheckpointStore(tmp_path, 1).best()


def test_validation_data_decide_where_they_are_given(tmp_path: Path) -> None:
    """The lowest loss on them is the best, of the model after the round, and --eval-data say nothing."""
    options: dict[str, Any] = {**OPTIONS, "rounds": 3, "update_encoding": "dense"}
    one = run_simulation(tmp_path / "one", validation_data="digits:test", **options)
    other = run_simulation(tmp_path / "other", eval_data="digits:test", **options)
    losses = [record["test_loss"] for record in other.summary["rounds"]]
    assert one.summary["best_loss"] == min(losses) and one.summary["best_round"] == 1 + losses.index(min(losses))
    server = [record["server_loss"] for record in other.summary["rounds"]][1:]
    assert other.summary["best_loss"] == min(server) and other.summary["best_round"] == 1 + server.index(min(server))


def test_a_round_of_which_every_upload_was_refused_is_at_chance(tmp_path: Path) -> None:
    """A front that makes activations out of all proportion leaves no loss at all."""
    refused: Any = SimpleNamespace(num_refused_clients=2)
    checkpoints: Any = SimpleNamespace(has=lambda _: True, read=lambda completed: completed)
    model: Any = SimpleNamespace(task=Task.CLASSIFICATION, num_classes=10)
    metrics = ServerMetrics(CollectorRegistry(), lambda: 0.0, tmp_path)
    trainer: Any = SimpleNamespace(model=model)
    best = BestCheckpoint(trainer=trainer, checkpoints=checkpoints, gatekeeper=refused, metrics=metrics, validation_source=None)
    loaded = list[Any]()
    for completed, loss in enumerate([2.3, 0.4, None, None, None], start=1):
        assert best.after_round(completed, loss, loaded.append) == (completed == 5)
    assert loaded == [1] and best.known.returns == (Return(5, 1),)


def test_fronts_rest_where_no_attempt_can_be_trained_on_and_nothing_was_learnt(start: Callable[..., Run]) -> None:
    """Under a plan that waits for answers a refused upload costs its client the attempt: the same for ever would be no run."""
    run = start(preset="heron-server-loss", clients=1, min_updates=1, local_steps=1)
    (client,) = joined(run.server, "a")
    for _ in range(CHANCE_ROUNDS):
        before = client.assignment.round if client.assignment.HasField("round") else None
        assert client.await_assignment(after=before).plan.estimator == pb.ESTIMATOR_ZEROTH_ORDER
        z, y = client.batch()
        messages = upload_messages(client.upload_header(0), [np.full_like(z, 3e38).tobytes(), y.tobytes()])
        with pytest.raises(grpc.RpcError):
            list(client.stub.TrainBatch(iter(messages), timeout=20))
    assert client.await_assignment(after=client.assignment.round).plan.estimator == pb.ESTIMATOR_NONE
    assert run.server.parts.worker.diverged_round == 0 and run.server.parts.ledger.balance().rejected == CHANCE_ROUNDS


def rates(run: Run, rounds: range, clients: list[Any]) -> list[float]:
    found = []
    for index in rounds:
        take_part(run.server, clients, index)
        found.append(clients[0].assignment.plan.relative_step)
    return found


def test_a_killed_run_goes_on_as_if_it_had_not_been(scripted: None, start: Callable[..., Run]) -> None:
    options: dict[str, Any] = {"preset": "heron", "update_encoding": "dense", "rounds": len(LOSSES), "local_steps": 1}
    whole = start("whole", **options)
    planned = preset("heron").plan.relative_step
    shares = [rate / planned for rate in rates(whole, range(len(LOSSES)), joined(whole.server, "a", "b"))]
    assert shares == pytest.approx([(1 - index / 8) * (1 if index < 6 else 0.5) for index in range(8)]), "half from the seventh round on"
    killed = start("killed", **options)
    for span in (range(6), range(6, 8)):
        rates(killed, span, joined(killed.server, "a", "b"))
        if span.stop < len(LOSSES):
            killed.kill()
    assert unlike(killed.tensors(), whole.tensors()) == []
    assert killed.server.parts.worker.inputs().step_factor == 0.5
    assert whole.server.sample("returns_to_best_total") == 1
