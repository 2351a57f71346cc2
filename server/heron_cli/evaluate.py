"""`heron evaluate`: score a checkpoint of a run on any data, read as the run reads them; on its own data the figures are the run's own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from heron_cli.trained_options import add_trained_options, checkpoint_of, vouched_by
from heron_common.errors import ConfigurationError
from heron_common.exit_codes import ExitCode
from heron_common.specification.data_specification import Task
from heron_common.terminal.foreign_text import printable
from heron_common.terminal.option_parser import at_least
from heron_common.terminal.output import say

if TYPE_CHECKING:
    import torch

    from heron_server.exports.vouching import Vouched


Which = int | Literal["best"] | None
"""The checkpoint after so many rounds, the best, or the newest."""


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("evaluate", help="score a checkpoint of a run on any data source")
    add_trained_options(parser)
    parser.add_argument("--data", required=True, metavar="SOURCE", help="data source with labels, like digits:test or csv:FILE:text:label")
    parser.add_argument(
        "--batch-size", type=at_least(1), metavar="N", help="samples at a time (default: the run's own, and so its own rounding)"
    )
    parser.add_argument(
        "--threads", type=at_least(1), default=1, metavar="N", help="threads of torch on the CPU (default: 1, as a run has)"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:N or auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> int:
    """Score and print.

    Raises:
        ConfigurationError: there is no run, its model cannot be built here, or the source or an option is wrong.
        CheckpointError: there is no such checkpoint, or it is damaged.
        DataError: the data are not what the run expects.

    """
    report = evaluate_checkpoint(
        options.run_dir,
        options.data,
        checkpoint_of(options),
        options.batch_size,
        threads=options.threads,
        device=options.device,
        vouched=vouched_by(options),
    )
    if options.json:
        say(json.dumps(report, allow_nan=False))
    else:
        _print(report)
    return ExitCode.OK


def evaluate_checkpoint(
    run_dir: Path,
    source: str,
    completed_rounds: Which = None,
    batch_size: int | None = None,
    *,
    threads: int = 1,
    device: str = "cpu",
    vouched: Vouched | None = None,
) -> dict[str, Any]:
    """Return the figures of a checkpoint as JSON values; `classes` holds those of each class, empty for other tasks.

    Raises:
        HeronError: see `run_evaluate`.

    """
    import torch

    from heron_common.data.check import check_source
    from heron_common.data.sources import open_source
    from heron_common.files.atomic import finite
    from heron_server.exports.trained_model import NOBODY, load_trained
    from heron_server.training.evaluation import evaluate
    from heron_server.training.trainer import choose_device

    _check_counts({"--batch-size": batch_size, "--threads": threads})
    torch.set_num_threads(threads)
    place = choose_device(device)
    data = open_source(source)
    trained = load_trained(run_dir, completed_rounds, vouched or NOBODY)
    for part in (trained.model.front, trained.model.back):
        part.to(place)
    reader = check_source(data, trained.data, trained.model.tokenizer)
    tally = ClassTally(trained.data.num_classes)
    is_classification = trained.data.task is Task.CLASSIFICATION
    score = evaluate(trained.model, reader, batch_size=batch_size, on_batch=tally.add if is_classification else None)
    report = {
        "run_id": trained.run_id,
        "completed_rounds": trained.completed_rounds,
        "data": source,
        "task": trained.data.task.value,
        "num_examples": score.num_examples,
        "accuracy": score.accuracy,
        "loss": score.loss,
        "perplexity": score.perplexity,
        "truncated": reader.truncated,
        "classes": tally.rows(trained.data.class_names) if is_classification else [],
    }
    return dict(finite(report))


def _check_counts(counts: Mapping[str, int | None]) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigurationError(f"{name} was expected to be 1 or more, not {value}")


class ClassTally:
    """How many samples of each class there are, and how many of them were recognised."""

    def __init__(self, num_classes: int) -> None:
        self._examples = np.zeros(num_classes, np.int64)
        self._correct = np.zeros(num_classes, np.int64)

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Account for a batch of logits."""
        known = labels.cpu().numpy()
        hit = (outputs.argmax(1) == labels).cpu().numpy()
        self._examples += np.bincount(known, minlength=len(self._examples))
        self._correct += np.bincount(known[hit], minlength=len(self._correct))

    def rows(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return a JSON object for each class; the accuracy of a class without samples is null."""
        return [
            {
                "name": names[number] if names else str(number),
                "examples": int(examples),
                "correct": int(correct),
                "accuracy": int(correct) / int(examples) if examples else None,
            }
            for number, (examples, correct) in enumerate(zip(self._examples, self._correct, strict=True))
        ]


def _print(report: dict[str, Any]) -> None:
    say(f"run {report['run_id']} after {report['completed_rounds']} rounds, {report['num_examples']} samples of {report['data']}")
    if report["truncated"]:
        say(f"{report['truncated']} texts were longer than the run's samples and cut off")
    if report["accuracy"] is not None:
        say(f"{'accuracy of tokens' if report['perplexity'] is not None else 'accuracy'}  {report['accuracy']:.2%}")
    say(f"loss  {report['loss']:.6g}" if report["loss"] is not None else "loss  not finite")
    if report["perplexity"] is not None:
        say(f"perplexity  {report['perplexity']:.6g}")
    names = [printable(row["name"]) for row in report["classes"]]
    width = max(map(len, names), default=0)
    for name, row in zip(names, report["classes"], strict=True):
        share = f"{row['accuracy']:7.2%}" if row["accuracy"] is not None else "   none"
        say(f"  {name:<{width}}  {share}  {row['correct']} of {row['examples']}")
