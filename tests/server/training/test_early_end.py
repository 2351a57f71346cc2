"""A run ends before its last round where a comparison holds or patience is over: the rule against a naive twin, and whole runs, stopped and resumed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_common.errors import ConfigurationError
from heron_common.ids import RoundReference
from heron_common.specification.data_specification import Task
from heron_server.storage.checkpoint import CheckpointStore
from heron_server.summary import RoundRecord, skipped_round
from heron_server.training.early_end import Comparison, EarlyEnd, EndRules, check_figures, parse_comparison
from tests.harness.simulated import TINY_FRONT, differing, run_simulation

SMALL: dict[str, Any] = {"clients": 2, "model_options": TINY_FRONT, "local_steps": 2, "preset": "frozen"}


def record(index: int, **figures: float | None) -> RoundRecord:
    return dataclasses.replace(skipped_round(RoundReference(index, 0), 2), **figures)


def records(figure: str, values: list[float | None]) -> list[RoundRecord]:
    return [record(index, **{figure: value}) for index, value in enumerate(values)]


def ended(rules: EndRules, rounds: list[RoundRecord]) -> int | None:
    """Return after how many rounds a run ends early."""
    ending = EarlyEnd(rules, len(rounds))
    for count in range(1, len(rounds) + 1):
        ending = ending.after_round(rounds[:count])
        if ending.because:
            return count
    return None


@pytest.mark.parametrize(
    ("text", "comparison"),
    [
        ("test_accuracy>0.97", Comparison("test_accuracy", ">", 0.97)),
        (" server_loss <= 1e-2 ", Comparison("server_loss", "<=", 0.01)),
        ("seconds>=3", Comparison("seconds", ">=", 3.0)),
        ("test_loss<-1", Comparison("test_loss", "<", -1.0)),
    ],
)
def test_a_comparison_is_read(text: str, comparison: Comparison) -> None:
    assert parse_comparison(text) == comparison


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "test_acuracy>0.97",
            "a round has no figure 'test_acuracy': did you mean test_accuracy[?]; figures are round_index, .*federated_loss",
        ),
        ("accuracy of the test", "FIGURE < <= > or >= NUMBER, like .*, not 'accuracy of the test'"),
        ("test_accuracy=0.97", "FIGURE < <= > or >= NUMBER"),
        ("test_accuracy>97%", "FIGURE < <= > or >= NUMBER"),
        ("test_accuracy>nan", "FIGURE < <= > or >= NUMBER"),
        ("0.9<test_accuracy<1", "FIGURE < <= > or >= NUMBER"),
        ("", "FIGURE < <= > or >= NUMBER"),
    ],
)
def test_what_is_no_comparison_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        parse_comparison(text)


@pytest.mark.parametrize(("sign", "holds"), [("<", [1, 0, 0]), ("<=", [1, 1, 0]), (">", [0, 0, 1]), (">=", [0, 1, 1])])
def test_a_comparison_holds_as_its_sign_says_and_never_without_the_figure_or_of_no_number(sign: str, holds: list[int]) -> None:
    comparison = parse_comparison(f"test_loss{sign}2")
    assert [comparison.holds(one) for one in records("test_loss", [1.0, 2.0, 3.0])] == [bool(h) for h in holds]
    assert not any(comparison.holds(one) for one in records("test_loss", [None, math.nan]))


def test_the_run_ends_after_the_first_round_of_which_the_comparison_holds_and_says_by_what() -> None:
    rounds = records("test_accuracy", [0.5, None, 0.98, 0.4])
    rules = EndRules(stop_when="test_accuracy>0.97")
    assert ended(rules, rounds) == 3
    decided = EarlyEnd(rules, 9).after_round(rounds[:3])
    assert decided.because == "--stop-when test_accuracy>0.97: test_accuracy was 0.98 after round 3"
    assert decided.after_round(rounds) == decided, "a decision stands"
    assert (EarlyEnd(rules, 4).reason(3), EarlyEnd(rules, 4).reason(4), decided.reason(3)) == (
        None,
        "all 4 rounds are done",
        decided.because,
    )


def naive(values: list[float | None], patience: int, sign: int) -> int | None:
    """Walk through the rounds with a best value and a count."""
    best, since = -math.inf, 0
    for count, value in enumerate(values, 1):
        if all(seen is None for seen in values[:count]):
            continue
        if value is not None and math.isfinite(value) and sign * value > best:
            best, since = sign * value, 0
        elif any(seen is not None for seen in values[: count - 1]):
            since += 1
        if since >= patience:
            return count
    return None


@given(
    st.lists(st.one_of(st.none(), st.just(math.nan), st.integers(0, 5).map(float)), max_size=14),
    st.integers(1, 4),
    st.sampled_from([("test_accuracy", 1), ("test_loss", -1), ("server_loss", -1)]),
)
def test_patience_is_that_of_a_naive_twin(values: list[float | None], patience: int, figure: tuple[str, int]) -> None:
    assert ended(EndRules(patience_rounds=patience), records(figure[0], values)) == naive(values, patience, figure[1])


def test_patience_looks_at_the_accuracy_where_there_is_one_and_else_at_a_loss() -> None:
    rules = EndRules(patience_rounds=2)
    worse = [record(n, test_accuracy=0.1 * n, test_loss=1.0 * n, server_loss=1.0 * n) for n in range(1, 6)]
    assert ended(rules, worse) is None
    assert ended(rules, [dataclasses.replace(one, test_accuracy=None) for one in worse]) == 3
    (last,) = {EarlyEnd(rules, 9).after_round([dataclasses.replace(one, test_accuracy=None) for one in worse]).because}
    assert last == "--patience-rounds 2: no better test loss than 1 of round 2 came since"


@pytest.mark.parametrize(
    ("figure", "given", "sentence"),
    [
        ("test_accuracy", {"is_scored": False}, "--stop-when waits for test_accuracy, which only --eval-data gives"),
        ("federated_loss", {"holds_out": False}, "which only --held-out gives"),
        ("test_accuracy", {"task": Task.REGRESSION}, "which a task of regression has not: use test_loss"),
        ("federated_perplexity", {}, "which a task of classification has not: use federated_loss"),
    ],
)
def test_a_figure_that_no_round_will_have_is_refused(figure: str, given: dict[str, Any], sentence: str) -> None:
    rules = EndRules(stop_when=f"{figure}>1")
    with pytest.raises(ConfigurationError, match=sentence):
        check_figures(rules, **{"task": Task.CLASSIFICATION, "is_scored": True, "holds_out": True, **given})
    check_figures(EndRules(stop_when="server_loss<1"), task=Task.REGRESSION, is_scored=False, holds_out=False)


def test_a_run_refuses_such_a_figure_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="only --held-out gives"):
        simulate(simulation_config(**SMALL, stop_when="federated_accuracy>0.5", run_dir=tmp_path / "run"))
    with pytest.raises(ConfigurationError, match=r"--stop-when: a round has no figure 'accuracy'(.|\n)*--patience-rounds"):
        simulation_config(**SMALL, stop_when="accuracy>0.5", patience_rounds=0)


def test_a_run_that_ended_early_stays_ended_by_its_rules_and_goes_on_by_others_as_if_it_had_never_ended(tmp_path: Path) -> None:
    whole = run_simulation(tmp_path / "whole", **SMALL, rounds=4)
    assert whole.summary["ended_because"] == "all 4 rounds are done"
    rules = {"stop_when": "round_index>=1"}
    first = run_simulation(tmp_path / "run", **SMALL, rounds=4, **rules)
    said = "--stop-when round_index>=1: round_index was 1 after round 2"
    assert (first.summary["rounds_completed"], first.summary["ended_because"]) == (2, said)
    assert first.summary["simulation"]["interrupted"] is False
    assert differing(first.boundaries[-1], whole.boundaries[2]) == []
    again = run_simulation(tmp_path / "run", **SMALL, rounds=4, **rules, resume=True)
    assert (again.summary["rounds_completed"], again.summary["ended_because"]) == (2, said)
    on = run_simulation(tmp_path / "run", **SMALL, rounds=4, resume=True)
    assert (on.summary["rounds_completed"], on.summary["ended_because"]) == (4, "all 4 rounds are done")
    assert differing(on.boundaries[-1], whole.boundaries[-1]) == []
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ended_because"] == "all 4 rounds are done"


def test_a_checkpoint_of_an_earlier_version_has_decided_nothing(tmp_path: Path) -> None:
    rules = EndRules(patience_rounds=2)
    decided = EarlyEnd(rules, 9, "enough")
    assert EarlyEnd(rules, 9).restored(decided.state()) == decided
    assert EarlyEnd(rules, 9).restored(json.loads(json.dumps(decided.state()))) == decided
    assert EarlyEnd(EndRules(), 9).restored(decided.state()).because == ""
    assert EarlyEnd(rules, 9).restored(None).because == ""


def test_the_end_waits_for_a_disk_that_takes_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from heron_common.errors import StorageError

    write, refused = CheckpointStore.write, list[int]()

    def refuse_the_second(self: CheckpointStore, checkpoint: Any, best: Any = None) -> None:
        if checkpoint.completed_rounds == 2 and not refused:
            refused.append(2)
            raise StorageError("the disk is full: free some space")
        write(self, checkpoint, best)

    monkeypatch.setattr(CheckpointStore, "write", refuse_the_second)
    done = run_simulation(tmp_path / "run", **SMALL, rounds=6, stop_when="round_index>=1")
    assert refused == [2]
    assert done.summary["rounds_completed"] == 3
    assert done.summary["ended_because"] == "--stop-when round_index>=1: round_index was 1 after round 2"
