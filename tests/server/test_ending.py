"""What is said when a run has ended: figures, the model's file, and commands that the command line takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from heron_cli.cli import make_parser
from heron_server.ending import best_round, closing_lines


def summary(accuracies: list[float | None], planned: int = 3, **more: Any) -> dict[str, Any]:
    rounds = [{"round_index": index, "test_accuracy": accuracy} for index, accuracy in enumerate(accuracies)]
    run = {"model": "cnn", "eval_data": "digits:test"}
    known = {"rounds": rounds, "rounds_completed": len(rounds), "num_rounds": planned, "seconds": 75.0, "best_round": None}
    return {**known, "checkpoint": "/runs/a/round-000003.safetensors", "configuration": {"run": run}, **more}


def test_a_finished_run_says_how_good_it_is_and_what_comes_next() -> None:
    lines = closing_lines(summary([0.5, 0.75, 0.7]), Path("/my runs/a"), resume="heron-server")
    assert lines == [
        "3 of 3 rounds in 1 min 15 s; test accuracy 70.0%, the best was 75.0% after round 2",
        "the model is /runs/a/round-000003.safetensors",
        "next:",
        "  heron report --run-dir '/my runs/a'",
        "  heron evaluate --run-dir '/my runs/a' --data digits:test",
        "  heron export --run-dir '/my runs/a' --format onnx --output model.onnx",
    ]


@pytest.mark.parametrize("model", ["cnn", "hf:folder", "python:zoo:make"])
def test_its_commands_are_what_the_command_line_takes(model: str) -> None:
    known = summary([0.5, 0.5, 0.5], configuration={"run": {"model": model, "eval_data": None}})
    for line in closing_lines(known, Path("a b"), resume="heron-server")[-3:]:
        program, *words = shlex.split(line)
        options = make_parser().parse_args(words)
        assert program == "heron" and options.run_dir == Path("a b")


def test_a_stopped_run_is_gone_on_with_and_one_that_ended_early_is_not() -> None:
    stopped = closing_lines(summary([0.5]), Path("a"), resume="heron simulate")
    assert stopped[3].startswith("  heron simulate --resume --run-dir a")
    assert not any("--resume" in line for line in closing_lines(summary([0.5], ended_because="patience"), Path("a"), resume="heron-server"))
    assert closing_lines(summary([]), Path("a"), resume="heron-server")[1:] == [
        "next:",
        "  heron-server --resume --run-dir a ...   # with the options of this start",
    ]


def test_the_best_checkpoint_is_named_where_it_is_not_the_last() -> None:
    lines = closing_lines(summary([None, None, None], best_round=2), Path("a"), resume="heron-server")
    assert lines[0] == "3 of 3 rounds in 1 min 15 s" and "after round 2 (--checkpoint best)" in lines[1]


def test_the_first_of_equals_is_the_best() -> None:
    assert best_round(summary([0.5, 0.75, None, 0.75])["rounds"]) == (0.75, 2)
    assert best_round([]) is None
