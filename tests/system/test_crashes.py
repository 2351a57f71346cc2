"""Processes are killed at every named point and started again: under lockstep the run ends bit-equal to one that nothing happened to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heron_common.process.crash_points import CrashPoint
from tests.harness.cluster import Cluster
from tests.harness.crashes import Outcome, Trial, assert_nothing_was_lost
from tests.harness.forks import Forks

PRESETS = ("heron", "heron-server-loss", "sflv2", "fsl-sage", "sflv1")

EVERY_RPC_AND_STORAGE_STEP = (
    "checkpoint_begun:1",
    "join_received:2",
    "blob_begun:2",
    "ledger_committing:3",
    "upload_received:2",
    "update_received:1",
    "checkpoint_written:1",
    "assignment_asked:3",
    "spool_written:2",
    "checkpoint_listed:1",
    "ledger_committed:4",
    "spool_durable:3",
    "checkpoint_begun:1",
    "checkpoint_settled:1",
    "summary_written:2",
    "leave_received:2",
)
"""A kill for each, spread over the rounds of one run; the last server has nobody to tell that the run is over."""

EVERY_CLIENT_POINT = (
    "client_state_written:1",
    "client_joined:1",
    "client_blob_part:2",
    "client_weights_loaded:1",
    "client_step_begun:2",
    "client_chunk_sent:3",
    "client_upload_answered:2",
    "client_round_computed:1",
    "client_update_sending:2",
    "client_update_answered:1",
    "client_leaving:1",
)

SHORT = {"rounds": 6, "local_steps": 3}

ONLY_WHERE_A_ROUND_IS_ABANDONED = {CrashPoint.ROUND_ABANDONED, CrashPoint.WENT_BACK}
ONLY_WHERE_THE_SPOOL_FILLS = {CrashPoint.OPEN_ROUND_SAVED}


@dataclass(frozen=True)
class Case:
    """A point with the plan that it is tried with."""

    point: CrashPoint
    preset: str
    holds_out: bool

    @property
    def options(self) -> dict[str, Any]:
        """What the run is started with."""
        return {"preset": self.preset, "rounds": 2, "local_steps": 3, **({"held_out": 0.2} if self.holds_out else {})}


CASES = tuple(
    Case(point, PRESETS[number % len(PRESETS)], number % 2 == 1)
    for number, point in enumerate(CrashPoint)
    if point not in ONLY_WHERE_A_ROUND_IS_ABANDONED | ONLY_WHERE_THE_SPOOL_FILLS
)

Undisturbed = Callable[..., Outcome]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """One process that imported both sides, for every start in this file."""
    started = Forks()
    yield started
    started.close()


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return how a run with these options ends if nothing happens; each is made once."""
    known: dict[str, Outcome] = {}

    def outcome(**options: Any) -> Outcome:
        name = repr(sorted(options.items()))
        if name not in known:
            known[name] = Trial(tmp_path_factory.mktemp("undisturbed"), forks, **options).undisturbed()
        return known[name]

    return outcome


def test_a_server_killed_at_every_rpc_and_storage_step_of_one_run_costs_nothing(
    tmp_path: Path, forks: Forks, undisturbed: Undisturbed
) -> None:
    outcome = Trial(tmp_path, forks, **SHORT).with_server_kills(EVERY_RPC_AND_STORAGE_STEP, last_grace_seconds=1)
    assert {row["attempt"] for row in outcome.rounds} == {0}
    assert_nothing_was_lost(outcome, undisturbed(**SHORT))


def test_a_client_killed_at_every_point_of_one_run_costs_nothing(tmp_path: Path, forks: Forks, undisturbed: Undisturbed) -> None:
    outcome = Trial(tmp_path, forks, **SHORT).with_client_kills(EVERY_CLIENT_POINT)
    assert {row["attempt"] for row in outcome.rounds} == {0}
    assert_nothing_was_lost(outcome, undisturbed(**SHORT))


def test_every_point_is_tried_and_there_are_enough() -> None:
    tried = {case.point for case in CASES} | ONLY_WHERE_A_ROUND_IS_ABANDONED | ONLY_WHERE_THE_SPOOL_FILLS
    assert tried == set(CrashPoint)
    assert len(tried) >= 30
    assert {case.preset for case in CASES if case.point.startswith("client_")} == set(PRESETS)
    gauntlet = {point.partition(":")[0] for point in EVERY_CLIENT_POINT}
    assert gauntlet == {point.value for point in CrashPoint if point.startswith("client_")}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.point}-{case.preset}{'-held-out' if case.holds_out else ''}")
def test_a_kill_at_any_point_costs_nothing(case: Case, tmp_path: Path, forks: Forks, undisturbed: Undisturbed) -> None:
    trial = Trial(tmp_path, forks, **case.options)
    if case.point.startswith("client_"):
        outcome = trial.with_client_kills([case.point])
    else:
        outcome = trial.with_server_kills([f"{case.point}:2"], last_grace_seconds=1 if case.point is CrashPoint.LEAVE_RECEIVED else 60)
    assert {row["attempt"] for row in outcome.rounds} == {0}
    assert_nothing_was_lost(outcome, undisturbed(**case.options))


@pytest.mark.slow
def test_who_has_not_heard_of_the_end_hears_it_from_the_restarted_server(tmp_path: Path, forks: Forks, undisturbed: Undisturbed) -> None:
    # The first goodbye kills the server: the other client may still ask what to do next.
    outcome = Trial(tmp_path, forks, **SHORT).with_server_kills(["leave_received:1"], last_grace_seconds=60)
    assert_nothing_was_lost(outcome, undisturbed(**SHORT))


@pytest.mark.slow
@pytest.mark.parametrize("point", sorted(ONLY_WHERE_A_ROUND_IS_ABANDONED))
def test_a_kill_while_a_round_is_abandoned_repeats_it_once_or_not_at_all(
    point: str, tmp_path: Path, forks: Forks, undisturbed: Undisturbed
) -> None:
    # What a client was told decides: a goodbye that the killed server had not answered did not happen.
    options = {"rounds": 2, "local_steps": 60}
    outcome = Trial(tmp_path / "killed", forks, **options).with_a_goodbye(point)
    attempts = [row["attempt"] for row in outcome.rounds]
    assert attempts in ([0, 0], [1, 0])
    same = undisturbed(**options) if attempts == [0, 0] else Trial(tmp_path / "alive", forks, **options).with_a_goodbye()
    assert outcome.differing(same) == []
    assert outcome.balance.waiting == 0 and outcome.spooled == []
    assert outcome.balance.trained == undisturbed(**options).balance.trained


FULL = {
    "preset": "heron",
    "rounds": 2,
    "local_steps": 14,
    "batch_size": 256,
    "direction_groups": 4,
    "micro_batch": 64,
    "spool_bytes": 1 << 20,
}
"""An upload has 35 kB, so that a round's 28 fill more than half of the smallest spool."""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["open_round_saved:1", "open_round_saved:2", "step_recorded:24", "update_accepted:1"])
def test_a_kill_after_a_checkpoint_inside_the_round_goes_on_from_there(
    point: str, tmp_path: Path, forks: Forks, undisturbed: Undisturbed
) -> None:
    outcome = Trial(tmp_path, forks, **FULL).with_server_kills([point])
    assert "checkpoint inside the round" in outcome.log and "going on inside a round" in outcome.log
    assert {row["attempt"] for row in outcome.rounds} == {0}
    assert_nothing_was_lost(outcome, undisturbed(**FULL))


def damage_open_checkpoint(cluster: Cluster) -> None:
    (path,) = (cluster.run_dir / "checkpoints").glob("open-*.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.slow
def test_a_damaged_checkpoint_inside_a_round_costs_nothing_while_payloads_are_there(
    tmp_path: Path, forks: Forks, undisturbed: Undisturbed
) -> None:
    outcome = Trial(tmp_path, forks, **FULL).with_server_kills(["open_round_saved:1"], damage_open_checkpoint)
    assert "a checkpoint is damaged" in outcome.log
    assert_nothing_was_lost(outcome, undisturbed(**FULL))


@pytest.mark.slow
def test_a_damaged_checkpoint_inside_a_round_repeats_it_with_a_warning(tmp_path: Path, forks: Forks, undisturbed: Undisturbed) -> None:
    outcome = Trial(tmp_path, forks, **FULL).with_server_kills(["step_recorded:24"], damage_open_checkpoint)
    assert "a checkpoint is damaged" in outcome.log and "is repeated" in outcome.log
    assert [row["attempt"] for row in outcome.rounds] == [1, 0]
    assert outcome.balance.waiting == 0 and outcome.spooled == []
    assert outcome.balance.trained == undisturbed(**FULL).balance.trained
