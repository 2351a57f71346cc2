"""`heron VERB ...`: a file per verb; here only the choice between them."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from heron_cli import audit, certs, cuts, demo, evaluate, export, health, leakage, report, simulate, status
from heron_common.errors import HeronError
from heron_common.exit_codes import ExitCode
from heron_common.process.quiet_libraries import quiet_libraries
from heron_common.process.server_libraries import raise_if_missing
from heron_common.terminal.log_setup import set_up_logging
from heron_common.terminal.option_parser import HELP_FLAGS, OptionParser
from heron_common.terminal.output import announce, refuse
from heron_common.version import VERSION

_LOAD_TORCH = frozenset({"audit", "cuts", "evaluate", "simulate"})
"""They keep whoever waits before a terminal waiting for seconds; `export` says so itself, once its arguments are checked."""


def make_parser() -> OptionParser:
    """Return the reader of all verbs' options; those of `simulate` are read by heron-server's reader."""
    parser = OptionParser(prog="heron", description="Tools around heron-server and heron-client.")
    parser.add_argument("--version", action="version", version=f"heron {VERSION}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    demo.add_parser(verbs)
    audit.add_parser(verbs)
    certs.add_parser(verbs)
    cuts.add_parser(verbs)
    evaluate.add_parser(verbs)
    export.add_parser(verbs)
    health.add_parser(verbs)
    leakage.add_parser(verbs)
    report.add_parser(verbs)
    simulate.add_parser(verbs)
    status.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code."""
    parser = make_parser()
    quiet_libraries()
    words = sys.argv[1:] if arguments is None else list(arguments)
    program = " ".join(["heron", *(word for word in words[:1] if not word.startswith("-"))])
    if not words:
        parser.print_help()
        return ExitCode.OK
    # What goes wrong is logged by the same rules as in a server, whatever library says it.
    set_up_logging("warning")
    try:
        # `simulate` takes the options of heron-server, which have a reader of their own.
        options = parser.parse_args(words[:1] if words[:1] == ["simulate"] else words)
        options.words = words[1:]
        # An operator's SIGTERM must stop the children too, so it unwinds like a Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if options.verb in _LOAD_TORCH and not HELP_FLAGS.intersection(words):
            announce(f"heron {options.verb}: loading ...")
        return _run_verb(options)
    except KeyboardInterrupt:
        return ExitCode.FORCED
    except HeronError as exc:
        return refuse(program, exc)
    except Exception:
        logging.getLogger("heron_cli").exception("unexpected error")
        return ExitCode.FAILURE


def _run_verb(options: argparse.Namespace) -> int:
    try:
        code: int = options.run(options)
    except ModuleNotFoundError as exc:
        raise_if_missing(exc)
        raise
    return code


if __name__ == "__main__":
    sys.exit(main())
