"""`heron report`: a run as one HTML page that needs neither network nor scripts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from heron_cli.leakage_figures.kept import KEPT_AS
from heron_common.errors import ConfigurationError, StorageError
from heron_common.exit_codes import ExitCode
from heron_common.files.atomic import write_atomically
from heron_common.files.plain_files import MOST_DOCUMENT_BYTES, MOST_SUMMARY_BYTES, read_plain, reading
from heron_common.terminal.output import say

_NEEDED = (
    "run_id",
    "preset",
    "num_rounds",
    "rounds_completed",
    "rounds",
    "clients",
    "algorithm",
    "configuration",
    "model",
    "parity",
    "versions",
)


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("report", help="write a run as one HTML page: curves, bytes, memory, time, drops, clients, plan")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run-dir", type=Path, metavar="PATH", help="directory of the run; it may be going on")
    source.add_argument("--summary", type=Path, metavar="FILE", help="a summary alone, as `heron simulate --summary` writes it")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: report.html beside the summary)")
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    """Write the page and print where it is.

    Raises:
        ConfigurationError: there is no summary, or it is none.
        StorageError: the page cannot be written.

    """
    # A file that the operator names may be a link; one in a directory that came from elsewhere may not.
    source: Path = options.summary.resolve() if options.summary else options.run_dir / "summary.json"
    output: Path = options.output or source.with_name("report.html")
    summary = read_summary(source)
    write_report(summary, output, leakage=None if options.summary else _leakage_of(options.run_dir, summary["run_id"]))
    say(output)
    return ExitCode.OK


def read_summary(path: Path) -> dict[str, Any]:
    """Return the summary in a file.

    Raises:
        ConfigurationError: there is none, or it is not one that a run writes.

    """
    try:
        summary = json.loads(read_plain(path, MOST_SUMMARY_BYTES))
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigurationError(f"the summary {path} cannot be read ({exc}): give the --run-dir of a run that has started") from exc
    missing = [name for name in _NEEDED if not isinstance(summary, dict) or name not in summary]
    if missing:
        raise ConfigurationError(
            f"{path} was expected to be the summary of a run, but has no {', '.join(missing)}: give a run's own summary.json"
        )
    return dict(summary)


def _leakage_of(run_dir: Path, run_id: str) -> dict[str, Any] | None:
    """Return the figures that `heron leakage` kept with this run, None if it has none.

    Raises:
        StorageError: they cannot be read.

    """
    path = run_dir / KEPT_AS
    try:
        document = json.loads(read_plain(path, MOST_DOCUMENT_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as exc:
        raise StorageError(f"{path} cannot be read ({exc}): delete it, or run `heron leakage --run-dir` again") from exc
    return document if isinstance(document, dict) and document.get("run_id") == run_id else None


def write_report(summary: dict[str, Any], output: Path, *, leakage: dict[str, Any] | None = None) -> None:
    """Write the page of a summary, and of what the run's cut gives away, if that was measured.

    Raises:
        StorageError: it cannot be written, or the figures are not what was expected.

    """
    from heron_cli.report_page.leakage_section import leakage_section
    from heron_cli.report_page.page import report_page

    with reading(f"{KEPT_AS} of the run"):
        section = leakage_section(leakage) if leakage is not None else ""
    with reading("the summary"):
        page = report_page(summary, section)
    try:
        write_atomically(output, page.encode())
    except OSError as exc:
        raise StorageError(f"the report {output} cannot be written ({exc}): choose another --output") from exc
