"""The notebooks under examples/: each runs from an empty folder to its end, and what is committed of it is small and shows no error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.test_examples import EXAMPLES, write_tweets

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

LARGEST_BYTES = 100_000


def outputs(cells: list[Any]) -> list[Any]:
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_has_no_error_and_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST_BYTES
    assert not [
        output for output in outputs(json.loads(text)["cells"]) if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert [word for word in ("/home/", "/tmp/", "/root/", "/work/") if word in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    tweets = tmp_path / "heron-example-tweets"
    tweets.mkdir()
    write_tweets(tweets)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = outputs(notebook.cells)
    assert found and not [output for output in found if output["output_type"] == "error"]
    assert len(json.dumps(notebook)) < LARGEST_BYTES


def test_there_are_three_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own_model", "presets", "text_lora"]
