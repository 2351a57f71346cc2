"""`heron export`: the trained model of a run, front and back as one, for PyTorch, transformers, ONNX or any reader of safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from heron_cli.trained_options import add_trained_options, checkpoint_of, vouched_by
from heron_common.exit_codes import ExitCode
from heron_common.terminal.output import announce, say


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "export",
        help="write the trained, whole model of a run for PyTorch, transformers, ONNX or safetensors",
        description="Rebuilds the model from what the run wrote down, loads a checkpoint, writes front and back as one model, opens what was written "
        "in its own library and compares the outputs. A module of your own is imported from the current directory, as it was for the run.",
    )
    add_trained_options(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=("torch", "hf", "onnx", "safetensors"),
        help="torch: a program for torch.export.load; hf: a folder for from_pretrained (transformers only); onnx: standard operators, weights inside; "
        "safetensors: weights by the names of the original, with a note as .json beside",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="file to be made, which ends in .pt2, .onnx or .safetensors; for hf a folder",
    )
    adapters = parser.add_mutually_exclusive_group()
    adapters.add_argument("--merge-adapters", action="store_true", help="merge adapters into their layers (the default)")
    adapters.add_argument(
        "--keep-adapters", action="store_true", help="leave adapters apart; for hf a folder of peft with the model in `base` below it"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export, once the new one is proved")
    parser.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Export and say what was written and how far its outputs are from the run's model.

    Raises:
        ConfigurationError: there is no run, its model cannot be built here, the format does not fit it, or the output exists.
        CheckpointError: there is no such checkpoint, or it is damaged.
        ProgramError: the model cannot be written in this format, or what was written differs from it.
        StorageError: the output cannot be written.

    """
    # Before torch: it takes seconds to import, and a large model minutes to build.
    from heron_server.exports.place import ExportFormat, check_arguments

    chosen = ExportFormat(options.format)
    check_arguments(options.run_dir, chosen, options.output, replaces=options.force, keeps_adapters=options.keep_adapters)
    announce("heron export: loading ...")
    from heron_server.exports.delivery import deliver
    from heron_server.exports.trained_model import load_trained
    from heron_server.exports.whole import TOLERANCE

    trained = load_trained(options.run_dir, checkpoint_of(options), vouched_by(options))
    delivered = deliver(trained, chosen, output=options.output, keeps_adapters=options.keep_adapters, replaces=options.force)
    say(f"model of run {trained.run_id} after {trained.completed_rounds} rounds, as {options.format}:")
    for path in delivered.paths:
        say(f"  {path}  {_size(path):,} bytes")
    say(f"opened again, its outputs differ by {delivered.difference:.1e} of the largest at most (limit {TOLERANCE:g})")
    return ExitCode.OK


def _size(path: Path) -> int:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
