"""What somebody who watched a run wants to read when it has ended: how good it is, where it is, and what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from heron_common.terminal.figures import human_seconds, human_share


def best_round(rounds: Iterable[dict[str, Any]]) -> tuple[float, int] | None:
    """Return the best accuracy on --eval-data, and after how many rounds it was reached first; None if nothing was scored."""
    known = [(row["test_accuracy"], row["round_index"] + 1) for row in rounds if row["test_accuracy"] is not None]
    return max(known, key=lambda pair: (pair[0], -pair[1]), default=None)


def closing_lines(summary: dict[str, Any], run_dir: Path, *, resume: str) -> list[str]:
    """Return figures, the model's file and three commands; `resume` is the command that goes on with a run of this kind."""
    done, planned = summary["rounds_completed"], summary["num_rounds"]
    lines = [f"{done} of {planned} rounds in {human_seconds(summary['seconds'])}{_accuracy(summary)}"]
    if done:
        best = summary.get("best_round")
        kept = f"; the best by its loss is after round {best} (--checkpoint best)" if best not in (None, done) else ""
        lines.append(f"the model is {summary['checkpoint']}{kept}")
    goes_on = done < planned and not summary.get("ended_because")
    return [*lines, "next:", *(f"  {command}" for command in _commands(summary, run_dir, f"{resume} --resume" if goes_on else ""))]


def _accuracy(summary: dict[str, Any]) -> str:
    last, best = summary["rounds"][-1] if summary["rounds"] else {}, best_round(summary["rounds"])
    if best is None:
        return ""
    now = last["test_accuracy"]
    said = f"; test accuracy {human_share(now)}" if now is not None else ""
    return f"{said}, the best was {human_share(best[0])} after round {best[1]}"


def _commands(summary: dict[str, Any], run_dir: Path, resume: str) -> list[str]:
    run, where = summary["configuration"]["run"], f"--run-dir {shlex.quote(str(run_dir))}"
    report = f"heron report {where}"
    if not summary["rounds_completed"]:
        return [f"{resume} {where} ...   # with the options of this start"]
    model = f" --model {shlex.quote(run['model'])}" if run["model"].startswith("python:") else ""
    kind, output = ("hf", "model") if run["model"].startswith("hf:") else ("onnx", "model.onnx")
    export = f"heron export {where}{model} --format {kind} --output {output}"
    if resume:
        return [f"{resume} {where} ...   # with the options of this start", report, export]
    return [report, f"heron evaluate {where}{model} --data {shlex.quote(run['eval_data'] or 'SOURCE')}", export]
