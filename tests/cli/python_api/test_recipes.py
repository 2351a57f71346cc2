"""The recipes of docs/python.md: each is run as it stands, with a stand-in for the tracker where that is not installed."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.python_api.handed_over import SMALL, build, load, load_test
from tests.harness.sources import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)


class Tracker:
    """Has the calls of MLflow and of Weights & Biases that the recipes make, and keeps what it is told."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.files: list[str] = []
        self.parameters: dict[str, Any] = {}
        self.config = SimpleNamespace(update=self.log_params)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start_run(self) -> Tracker:
        return self

    def init(self, project: str) -> Tracker:
        return self

    def log_params(self, parameters: dict[str, Any]) -> None:
        self.parameters |= parameters

    def log_metrics(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def log_artifact(self, path: str) -> None:
        self.files.append(path)

    def save(self, path: str) -> None:
        self.files.append(path)


def test_every_block_of_the_page_is_python() -> None:
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        compile(block, "docs/python.md", "exec")


@pytest.mark.parametrize("library", ["mlflow", "wandb"])
def test_a_recipe_logs_every_round(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, library, tracker)  # type: ignore[arg-type]  # whatever has the attributes is a module to an import
    (block,) = [block for block in BLOCKS if f"import {library}" in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= 12
    arguments = {name: value for name, value in SMALL.items() if name not in ("cut", "rounds")}
    block = block.replace("rounds=rounds)", "rounds=rounds, **small)")
    exec(block, {"model": build(), "data": load(), "held_out": load_test(), "cut": SMALL["cut"], "rounds": 2, "small": arguments})
    assert [step for step, _ in tracker.logged] == [0, 1]
    assert all(0 <= figures["test_accuracy"] <= 1 for _, figures in tracker.logged)
    assert tracker.parameters["preset"] == "heron" and tracker.files[0].endswith("report.html")
