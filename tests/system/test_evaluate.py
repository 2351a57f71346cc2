"""`heron evaluate`: on the run's own data its figures are the run's own, digit for digit; class by class; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_cli.cli import main
from heron_cli.evaluate import evaluate_checkpoint
from heron_common.errors import ConfigurationError, DataError, HeronError
from heron_common.exit_codes import ExitCode
from tests.harness.trained import TrainedRuns


@pytest.mark.parametrize("name", ["cnn", "bert"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_the_figures_are_those_that_the_run_found_after_that_round(name: str, rounds: int, runs: TrainedRuns) -> None:
    run = runs[name]
    report = evaluate_checkpoint(run.directory, run.eval_data, rounds)
    assert (report["accuracy"], report["loss"]) == run.figures(rounds)
    assert report["completed_rounds"] == rounds and report["run_id"] == run.summary["run_id"]


def test_the_perplexity_of_text_is_the_run_s_own(runs: TrainedRuns, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs["gpt2"]
    assert main(["evaluate", "--run-dir", str(run.directory), "--data", run.eval_data, "--json"]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert report["perplexity"] == run.summary["rounds"][-1]["test_perplexity"] > 1
    assert (report["accuracy"], report["loss"]) == run.figures() and report["classes"] == []
    assert main(["evaluate", "--run-dir", str(run.directory), "--data", run.eval_data, "--batch-size", "5"]) == ExitCode.OK
    assert f"perplexity  {report['perplexity']:.6g}"[:16] in capsys.readouterr().out


def test_each_class_is_counted_by_its_name(runs: TrainedRuns, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs["bert"]
    report = evaluate_checkpoint(run.directory, run.eval_data)
    labels = np.load(run.samples)["y"]
    assert [row["name"] for row in report["classes"]] == ["low", "high"]
    assert [row["examples"] for row in report["classes"]] == np.bincount(labels, minlength=2).tolist()
    assert sum(row["correct"] for row in report["classes"]) == round(report["accuracy"] * report["num_examples"])
    assert main(["evaluate", "--run-dir", str(run.directory), "--data", run.eval_data]) == ExitCode.OK
    printed = capsys.readouterr().out
    assert f"{report['classes'][0]['correct']} of {report['classes'][0]['examples']}" in printed and "low " in printed


def test_a_class_without_samples_has_no_accuracy(runs: TrainedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "zeros.npz", x=np.zeros((3, 1, 8, 8), np.float32), y=np.zeros(3, np.int64))
    source = f"npz:{tmp_path / 'zeros.npz'}"
    report = evaluate_checkpoint(runs["cnn"].directory, source)
    assert [row["examples"] for row in report["classes"]] == [3] + [0] * 9
    assert [row["accuracy"] for row in report["classes"]][1:] == [None] * 9
    assert main(["evaluate", "--run-dir", str(runs["cnn"].directory), "--data", source]) == ExitCode.OK
    assert "9     none  0 of 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"source": "magic:x"}, ConfigurationError, "unknown data source 'magic:x'"),
        ({"source": "npz:missing.npz"}, DataError, "missing.npz"),
        ({"source": "npz:other.npz"}, DataError, "other.npz"),
        ({"completed_rounds": 9}, ConfigurationError, "--round can be 1, 2"),
        ({"run_dir": Path("nowhere")}, ConfigurationError, "nowhere holds no run"),
        ({"batch_size": 0}, ConfigurationError, "--batch-size was expected to be 1 or more, not 0"),
        ({"device": "cuda:99"}, ConfigurationError, "cannot be used here"),
    ],
)
def test_what_cannot_be_scored_is_said_in_a_sentence(
    changes: dict[str, Any], error: type[HeronError], sentence: str, runs: TrainedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("other.npz", x=np.zeros((3, 1, 5, 5), np.float32), y=np.zeros(3, np.int64))
    with pytest.raises(error, match=sentence) as caught:
        evaluate_checkpoint(**{"run_dir": runs["cnn"].directory, "source": "digits:test", **changes})
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_the_code_of_its_error(runs: TrainedRuns, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run-dir", str(runs["cnn"].directory), "--data", "digits:test", "--round", "5"]
    assert main(["evaluate", *words]) == ExitCode.CONFIGURATION
    assert capsys.readouterr().err.startswith("heron evaluate: no checkpoint after 5 rounds")
