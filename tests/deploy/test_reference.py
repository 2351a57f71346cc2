"""Pages that are made from the code: they are what the code says today, and they leave nothing out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.reference import main, pages
from heron_client.config import OPTION_HELP
from heron_common.error_catalog import ErrorCode
from heron_common.exit_codes import ExitCode
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import flag_of, sections_of
from tests.harness.sources import ROOT, folder_of

FOLDER = ROOT / "docs" / "reference"


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_committed_page_is_what_the_code_says(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], "run `make reference`"


def test_pages_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new")]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new").iterdir()} == pages()


def test_every_option_code_and_metric_of_the_code_is_there() -> None:
    said = pages()
    flags = [flag_of(name) for model in sections_of(ServerConfig).values() for name in model.model_fields]
    assert [flag for flag in [*flags, *(f"--{name}" for name in OPTION_HELP)] if f"`{flag}`" not in said["options.md"]] == []
    assert [code for code in ErrorCode if f"`{code.value}`" not in said["errors.md"]] == []
    assert [code for code in ExitCode if f"| {code.value} | {code.name} |" not in said["errors.md"]] == []
    for part in ("server", "client"):
        registered = re.findall(rf'"heron_{part}_([a-z_]+)"', (folder_of(f"heron_{part}") / "metrics.py").read_text(encoding="utf-8"))
        assert registered and [name for name in registered if f"`heron_{part}_{name}" not in said["metrics.md"]] == []


def test_labels_of_metrics_are_named() -> None:
    assert re.search(r"`heron_server_bytes_total` \| counter \| direction, kind \|", pages()["metrics.md"])
