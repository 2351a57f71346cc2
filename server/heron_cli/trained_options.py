"""What every verb is told that rebuilds a run's model from its directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heron_common.terminal.option_parser import at_least

if TYPE_CHECKING:
    from heron_server.exports.vouching import Vouched


def add_trained_options(parser: argparse.ArgumentParser, *, without_run: str = "", without_run_options: str = "") -> None:
    """Declare the run, its checkpoint, and who answers for its code; with a verb that also works without a run, what model and options mean there."""
    parser.add_argument("--run-dir", type=Path, required=not without_run, metavar="PATH", help="directory of the run; it may be going on")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--round", type=at_least(0), metavar="N", help="the checkpoint after N rounds (default: the newest)")
    which.add_argument("--checkpoint", choices=("newest", "best"), help="the newest checkpoint (default) or the run's best one")
    parser.add_argument(
        "--model",
        metavar="TEXT",
        help=f"{without_run}the model that the run was started with; needed where it is code of your own, python:MODULE:CALLABLE",
    )
    parser.add_argument(
        "--model-options",
        metavar="TEXT",
        help=f"{without_run_options}the model's options as they were given to the run; needed where they name code of your own",
    )
    parser.add_argument(
        "--trust-run-code",
        action="store_true",
        help="run the code that the run directory names, whatever it is: it can do all that you can",
    )


def checkpoint_of(options: argparse.Namespace) -> int | Literal["best"] | None:
    """Return which checkpoint was asked for: the one after so many rounds, the best, or the newest."""
    round_asked: int | None = options.round
    return "best" if options.checkpoint == "best" else round_asked


def vouched_by(options: argparse.Namespace) -> Vouched:
    """Return what an operator answers for.

    Raises:
        ConfigurationError: options of the model are not written KEY=VALUE.

    """
    # torch takes seconds to import; the other verbs should not wait for it.
    from heron_server.exports.vouching import Vouched
    from heron_server.models.registry import parse_model_options

    repeated = None if options.model_options is None else parse_model_options(options.model_options)
    return Vouched(options.model, repeated, options.trust_run_code)
