"""`python -m deploy.reference FOLDER`: pages of options, metrics, errors, exit codes and names of Python, from the code that has them."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from deploy.api_reference import api_page
from deploy.watching.catalogue import catalogue
from heron_cli.cli import make_parser
from heron_cli.simulation.configuration import SimulationSection
from heron_client.config import OPTION_HELP, variable_of
from heron_common import errors
from heron_common.error_catalog import CATALOG
from heron_common.exit_codes import EXIT_HELP, PERMANENT
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import flag_of, sections_of

_NOTE = "Generated from the code by `make reference`; a test compares.\n"

_SERVER_ORDER = (
    "Flags win over the environment (`--run-dir` as `HERON_SERVER_RUN_DIR`), the environment over a TOML file (`--config FILE` or `HERON_SERVER_CONFIG`), "
    "in the table that is named here.\n"
)
_SCRAPING = (
    "Prometheus reads them over plain HTTP: the server's at `--metrics-host:--metrics-port` (127.0.0.1:9464 by default), a client's where "
    "`--metrics-port` is given. Histograms have `_bucket`, `_sum` and `_count`.\n"
)
_REFUSALS = (
    "The code travels in the trailing metadata `heron-error-code` and labels `heron_server_rejections_total` and `heron_client_rejections_total`. "
    "A client repeats by itself what a retry can help.\n"
)


def pages() -> dict[str, str]:
    """Return the text of each page by file name."""
    return {"options.md": _options(), "metrics.md": _metrics(), "errors.md": _errors(), "api.md": api_page(_NOTE)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages into the folder that is named."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
    return 0


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(_cell(word) for word in line) + " |\n" for line in lines) + "\n"


def _cell(word: str) -> str:
    return " ".join(word.split()).replace("|", "\\|").replace("<", "&lt;")


def _options() -> str:
    parts = [
        "# Every option\n",
        _NOTE,
        "## heron-server\n",
        _SERVER_ORDER,
    ]
    for section, model in sections_of(ServerConfig).items():
        parts += [f"### [{section}]\n", _section(model)]
    parts += [
        "## heron-client\n",
        "Flags win over the environment (`--state-dir` as `HERON_CLIENT_STATE_DIR`).\n",
        _table(
            ("option", "environment", "what it says"),
            ((f"`--{name}`", f"`{variable_of(name)}`", text) for name, text in OPTION_HELP.items()),
        ),
        "## heron\n",
    ]
    parts += [f"### heron {name}\n\n{text}" for name, text in _verbs()]
    return "\n".join(parts).rstrip("\n") + "\n"


def _section(model: type[BaseModel]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        has_default = field.default is not None and field.default is not PydanticUndefined and field.default != ""
        rows.append((f"`{flag_of(name)}`", f"`{field.default}`" if has_default else "", field.description or ""))
    return _table(("option", "default", "what it says"), rows)


def _verbs() -> Iterator[tuple[str, str]]:
    for name, parser, explanation in _parsers(make_parser()):
        if name == "simulate":
            words = f"{explanation}\n\nIt takes the options of heron-server but those of [network], in the environment as `HERON_SIMULATE_...`, and these:\n\n"
            yield name, words + _section(SimulationSection)
            continue
        yield name, f"{explanation}\n\n" + _arguments(parser)
        for action, nested, text in _parsers(parser):
            yield f"{name} {action}", f"{text}\n\n" + _arguments(nested)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            explanations = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name in sorted(action.choices):
                yield name, action.choices[name], explanations.get(name, "")


def _arguments(parser: argparse.ArgumentParser) -> str:
    known = [a for a in parser._actions if not isinstance(a, argparse._HelpAction | argparse._SubParsersAction)]
    if not known:
        return ""
    rows = []
    for action in known:
        name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar or action.dest}`"
        needed = "needed" if action.required and action.option_strings else ""
        rows.append((name, needed, action.help or ""))
    return _table(("option", "", "what it says"), rows)


def _metrics() -> str:
    parts = ["# Every metric\n", _NOTE, _SCRAPING]
    for side in ("server", "client"):
        known = (metric for metric in catalogue() if metric.name.startswith(f"heron_{side}_"))
        rows = ((f"`{metric.name}`", metric.kind, ", ".join(metric.labels), metric.meaning) for metric in known)
        parts += [f"## heron-{side}\n", _table(("metric", "type", "labels", "what it says"), sorted(rows))]
    return "\n".join(parts).rstrip("\n") + "\n"


def _errors() -> str:
    catalog = ((f"`{code.value}`", entry.grpc_status, "yes" if entry.retryable else "no", entry.meaning) for code, entry in CATALOG.items())
    _, drawn, rule = (errors.__doc__ or "").strip().split("\n\n")
    parts = [
        "# Every error and exit code\n",
        _NOTE,
        "## Exit codes\n",
        f"Of all commands. A service that restarts what ends should not restart {', '.join(str(code.value) for code in PERMANENT)}: nothing changes by that.\n",
        _table(("code", "name", "what it says"), ((str(code.value), code.name, text) for code, text in EXIT_HELP.items())),
        "## What a server refuses\n",
        _REFUSALS,
        _table(("code", "gRPC status", "a retry can help", "what it means"), catalog),
        "## Errors in the code\n",
        f"```text\n{textwrap.dedent(drawn)}\n```\n",
        rule.strip(),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.exit(main())
