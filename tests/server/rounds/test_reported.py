"""What clients say about themselves: every field has a range, figures are medians, and no liar stops fronts, a trainer or a resume."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.data.sources import parse_specification
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.process.clock import ManualClock
from heron_common.protocol.messages import LocalStatistics
from heron_common.protocol.reported_ranges import RANGES, out_of_range, within_range, within_ranges
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.metrics import ServerMetrics
from heron_server.models.registry import build_model
from heron_server.rounds.accepted import AcceptedUpdate
from heron_server.rounds.jobs import CloseJob
from heron_server.rounds.reported import MOST_CHANGE, check_reported, check_variances, combined
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore
from heron_server.storage.ledger import Balance, Ledger
from heron_server.storage.recorded import read_attempts
from heron_server.storage.spool import SpoolEntry
from heron_server.training.best_checkpoint import BestCheckpoint
from heron_server.training.early_end import EarlyEnd, EndRules
from heron_server.training.fronts import FrontAverage
from heron_server.training.gatekeeping import Gatekeeper
from heron_server.training.held_out_score import HeldOutScore
from heron_server.training.stepping import Stepper
from heron_server.training.tallies import RunTallies
from heron_server.training.trainer import Trainer, TrainerSettings
from heron_server.training.worker import TrainWorker
from tests.server import builders
from tests.server.running_server import TINY_DATA, TINY_OPTIONS, RunningServer
from tests.server.wire_client import joined, refused

Serve = Callable[..., RunningServer]

FIELDS = {field.name: type(field.default) for field in dataclasses.fields(LocalStatistics)}


def anything(kind: type) -> st.SearchStrategy[Any]:
    if kind is bool:
        return st.booleans()
    return st.integers(0, 2**64 - 1) if kind is int else st.floats()


statistics = st.builds(LocalStatistics, **{name: st.just(kind()) | anything(kind) for name, kind in FIELDS.items()})


def test_every_field_has_a_range_and_the_defaults_lie_in_it() -> None:
    assert RANGES.keys() == FIELDS.keys()
    assert out_of_range(LocalStatistics()) == ""


@settings(max_examples=200, deadline=None)
@given(statistics)
def test_what_passes_is_in_its_range_and_what_does_not_is_named_with_a_sentence(said: LocalStatistics) -> None:
    wrong = [name for name, (low, high) in RANGES.items() if not low <= getattr(said, name) <= high]
    if not wrong:
        check_reported(said)
        assert within_ranges(said) == said
        return
    with pytest.raises(RefusedError, match=f"'{wrong[0]}' was expected to be a number from .* sit this round out") as refusal:
        check_reported(said)
    assert refusal.value.code is ErrorCode.NON_FINITE
    assert out_of_range(within_ranges(said)) == ""


@pytest.mark.parametrize("name", sorted(MOST_CHANGE))
@pytest.mark.parametrize("size", [1e-30, 1e30, 1e44])
@pytest.mark.parametrize("last", [0.0, 4.0])
@pytest.mark.parametrize("honest", [[4.0], [4.0, 4.2], [3.9, 4.0, 4.1], [4.0] * 7])
def test_one_liar_moves_nothing_if_two_are_honest_and_little_if_one_is(name: str, size: float, last: float, honest: list[float]) -> None:
    figure = combined(name, [size, *honest], last)
    if len(honest) > 1 or size > 1:
        assert 3.9 <= figure <= 4.2
    elif last:
        assert figure == last / MOST_CHANGE[name], "of two nobody can say which of them lies"


def test_one_liar_is_not_heard_where_nobody_else_knows_anything() -> None:
    assert combined("second_moment", [1e89, 0.0, 0.0, 0.0], 0.0) == 0.0
    assert combined("second_moment", [1e89, 0.0, 0.0], 5.0) == 5.0


def test_a_figure_is_the_median_of_those_that_are_known() -> None:
    assert combined("second_moment", [2.0, 0.0, 6.0, 9.0], 0.0) == 6.0
    assert combined("second_moment", [4.0, 2.0], 0.0) == 3.0
    assert combined("second_moment", [0.0, 0.0], 5.0) == 5.0 and combined("second_moment", [], 0.0) == 0.0
    assert combined("derivative_quantile", [1e9] * 3, 2.0) == 20.0


# ---- a trainer that closes rounds, is killed and comes back ---------------------------------------------------------------------------------


def make_worker(root: Path) -> tuple[TrainWorker, list[dict[str, Any]]]:
    model = build_model("cnn", TINY_OPTIONS, data=parse_specification(TINY_DATA), seed=0)
    summaries: list[dict[str, Any]] = []
    metrics = ServerMetrics(CollectorRegistry(), lambda: 0.0, root)
    table: dict[str, Any] = {name: {"bytes_up": {}, "bytes_down": {}} for name in "abc"}
    ledger: Any = SimpleNamespace(sync=lambda: None, balance=lambda: Balance(0, 0, scored=0, rejected=0), drops=dict, abandoned=dict)
    trainer = Trainer(
        model,
        TrainerSettings("adam", 0.01, server_weight_decay=0.0, server_momentum=0.0, device="cpu", precision="fp32"),
        trains_head=False,
    )
    facts, clock = builders.run_facts(preset_name="frozen", model=model.to_spec()), ManualClock(0.0)
    checkpoints, gatekeeper = CheckpointStore(root / "checkpoints", 3), Gatekeeper(None, metrics)
    # Weights are not what this is about.
    no_fronts: Any = SimpleNamespace(take_over=lambda *_: None)
    worker = TrainWorker(
        trainer=trainer,
        facts=facts,
        gatekeeper=gatekeeper,
        alignment=None,
        stepper=Stepper(facts, trainer=trainer, gatekeeper=gatekeeper, alignment=None, metrics=metrics, clock=clock),
        held_out=HeldOutScore(trainer, facts.model),
        tallies=RunTallies(lambda: table, ledger),
        best=BestCheckpoint(trainer=trainer, checkpoints=checkpoints, gatekeeper=gatekeeper, metrics=metrics, validation_source=None),
        fronts=no_fronts,
        ending=EarlyEnd(EndRules(), 60),
        checkpoints=checkpoints,
        ledger=ledger,
        metrics=metrics,
        clock=clock,
        eval_source=None,
        event_files=None,
        client_table=lambda: table,
        write_summary=lambda summary: summaries.append(json.loads(json.dumps(summary, allow_nan=False))),
        summary_facts={"num_rounds": 5},
    )
    return worker, summaries


def closing(round_index: int, said: list[LocalStatistics]) -> CloseJob:
    updates = tuple(AcceptedUpdate(name, "", entry=None, statistics=one) for name, one in zip("abc", said, strict=False))
    # The plan trains a front, so that its figures count; its weights are not what this is about.
    plan = builders.plan("heron")
    rows = tuple([8] * len(updates))
    return CloseJob(
        RoundReference(round_index, 0),
        plan,
        updates=updates,
        rows=rows,
        cohort=tuple("abc"),
        opened_at=0.0,
        start=np.zeros(0, np.float32),
        scales=(1.0,),
    )


several_rounds = st.lists(st.lists(statistics, min_size=1, max_size=3), min_size=2, max_size=3)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(rounds=several_rounds)
def test_save_restore_and_one_more_round_whatever_was_said(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[LocalStatistics]]
) -> None:
    save_restore_and_one_more_round(tmp_path_factory.mktemp("run"), rounds)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(rounds=several_rounds)
def test_save_restore_and_one_more_round_many_times(tmp_path_factory: pytest.TempPathFactory, rounds: list[list[LocalStatistics]]) -> None:
    save_restore_and_one_more_round(tmp_path_factory.mktemp("run"), rounds)


def save_restore_and_one_more_round(root: Path, rounds: list[list[LocalStatistics]]) -> None:
    """What is accepted is what the check lets through; what an earlier version accepted is drawn into its range when the ledger is read."""
    worker, summaries = make_worker(root)
    for index, said in enumerate(rounds):
        taken = [one if not out_of_range(one) else within_ranges(one) for one in said]
        assert worker._close(closing(index, taken)), "the checkpoint was written"
        inputs = worker.inputs()
        assert math.isfinite(inputs.second_moment) and math.isfinite(inputs.derivative_quantile)
        worker, again = make_worker(root)
        worker.restore(CheckpointStore(root / "checkpoints", 3).read_newest())
        assert (worker.inputs().second_moment, worker.inputs().derivative_quantile) == (inputs.second_moment, inputs.derivative_quantile)
        assert len(summaries[-1]["rounds"]) == index + 1
        summaries = again
    assert worker._close(closing(len(rounds), [LocalStatistics(second_moment=4.0, step_seconds=1.0)] * 3))
    seconds = summaries[-1]["clients"]["a"]["compute_seconds"]
    assert isinstance(seconds, float) and math.isfinite(seconds)


def test_a_checkpoint_that_an_earlier_version_poisoned_is_gone_on_with(tmp_path: Path) -> None:
    worker, _ = make_worker(tmp_path)
    state = worker._state() | {
        "second_moment": 1e300,
        "derivative_quantile": None,
        "tallies": {"a": {"compute_seconds": None, "upload_wait_seconds": 3.0, "round_seconds": 1.0}},
    }
    CheckpointStore(tmp_path / "checkpoints", 3).write(Checkpoint(0, worker._tensors(), state))
    other, summaries = make_worker(tmp_path)
    other.restore(CheckpointStore(tmp_path / "checkpoints", 3).read_newest())
    assert (other.second_moment, other.derivative_quantile) == (0.0, 0.0), "unknown, or fronts would stand still for dozens of rounds"
    assert other._close(closing(0, [LocalStatistics(step_seconds=2.0)]))
    assert summaries[-1]["clients"]["a"]["compute_seconds"] == 2.0


def test_what_a_ledger_of_an_earlier_version_holds_is_drawn_into_range(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", "run", begins=True, durable=False)
    ledger.round_opened(RoundReference(0, 0), {"a": ""}, "inputs")
    ledger.update_accepted(
        RoundReference(0, 0),
        "a",
        sha256="",
        payload=None,
        statistics=LocalStatistics(second_moment=1e300, step_seconds=1.7e308),
        log_bytes=None,
    )
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        (update,) = read_attempts(connection)[0].updates
    assert out_of_range(update.statistics) == "" and update.statistics.second_moment == RANGES["second_moment"][1]


def test_what_is_said_of_a_round_in_which_fronts_rest_moves_nothing(tmp_path: Path) -> None:
    worker, _ = make_worker(tmp_path)
    worker._close(dataclasses.replace(closing(0, [LocalStatistics(second_moment=1e80)] * 3), plan=builders.plan("frozen")))
    assert worker.second_moment == 0.0
    worker._close(closing(1, [LocalStatistics(second_moment=4.0)] * 3))
    assert worker.second_moment == 4.0


def test_no_number_counts_as_unknown() -> None:
    assert within_range("second_moment", None) == within_range("second_moment", math.nan) == 0.0
    assert within_range("difference_mean", -math.inf) == RANGES["difference_mean"][0]


# ---- a real server -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("second_moment", 1e300), ("step_seconds", 1.7e308)])
def test_a_liar_sits_the_round_out_and_the_others_go_on(serve: Serve, name: str, value: float) -> None:
    server = serve(clients=4, min_updates=3, aggregation="median", round_deadline_seconds=60, update_encoding="dense")
    clients = joined(server, *"abcd")
    for client in clients:
        client.await_assignment()
        for step in range(2):
            client.upload(step)
    with refused(server, ErrorCode.NON_FINITE) as caught:
        clients[0].update(statistics=pb.LocalStatistics(**{name: value}))
    assert f"'{name}'" in caught.value.details()
    for client in clients[1:]:
        client.update(statistics=pb.LocalStatistics(second_moment=4.0))
    clients[0].stub.Leave(pb.LeaveRequest(session=clients[0].session, peak_memory_bytes=2**64 - 1))
    assert clients[1].await_assignment(after=clients[1].assignment.round).second_moment == 4.0
    assert server.state.registry.by_name["a"].peak_memory_bytes <= 1 << 50


# ---- running statistics ---------------------------------------------------------------------------------------------------------------------

STATISTICS = (TensorSpec("front.norm.running_mean", DType.FLOAT32, (2,)), TensorSpec("front.norm.running_var", DType.FLOAT32, (2,)))


def entry_of(path: Path, *numbers: float) -> SpoolEntry:
    path.write_bytes(np.array(numbers, "<f4").tobytes())
    return SpoolEntry(path, 4 * len(numbers))


def test_a_running_variance_below_zero_is_refused_and_a_mean_is_not(tmp_path: Path) -> None:
    model = dataclasses.replace(builders.MODEL, statistics=STATISTICS)
    check_variances(entry_of(tmp_path / "good", -5.0, -1.0, -2.0, 0.0, 0.5), model)
    with pytest.raises(RefusedError, match=r"'front\.norm\.running_var' was expected to be 0 or more, but -0.5 came") as refusal:
        check_variances(entry_of(tmp_path / "bad", -5.0, -1.0, -2.0, 0.0, -0.5), model)
    assert refusal.value.code is ErrorCode.NON_FINITE
    check_variances(entry_of(tmp_path / "none", -1.0), builders.MODEL)


@pytest.mark.parametrize("rule", [rule for rule in AggregationRule if rule is not AggregationRule.MEAN])
def test_running_statistics_are_averaged_by_the_runs_rule(tmp_path: Path, rule: AggregationRule) -> None:
    start, taken = np.array([0.0, 1.0, 1.0, 1.0], np.float32), []
    entries = [entry_of(tmp_path / f"{i}", 0.1, 1.0, 1.1, 0.9) for i in range(4)] + [entry_of(tmp_path / "liar", 3e38, 3e38, 3e38, 3e38)]
    trainer: Any = SimpleNamespace(statistics=lambda: start, set_statistics=taken.append)
    facts: Any = SimpleNamespace(model=SimpleNamespace(statistics=STATISTICS), algorithm=SimpleNamespace(aggregation=rule))
    no_audit: Any = None
    fronts = FrontAverage(facts, trainer, no_audit)
    updates = tuple(AcceptedUpdate(str(i), "", entry=entry, statistics=LocalStatistics()) for i, entry in enumerate(entries))
    job: Any = SimpleNamespace(plan=SimpleNamespace(trains_front=False), updates=updates)
    fronts.take_over(job, np.full(5, 0.2))
    (flat,) = taken
    assert np.abs(flat - np.array([0.1, 1.0, 1.1, 0.9])).max() < 0.2
