"""What the server's tests share: one cache of compiled programs, tiny models, and servers that stop with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from heron_common.data.sources import parse_specification
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel
from heron_server.programs.export import ProgramCache
from tests.server.rounds.killed_run import Run
from tests.server.running_server import TINY_DATA, TINY_OPTIONS, RunningServer, tiny_config


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Tiny operations gain nothing from more threads, and where cores are busy they lose tenfold."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def program_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory of compiled programs for the whole session: an export takes seconds."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def program_cache(program_cache_dir: Path) -> ProgramCache:
    return ProgramCache(program_cache_dir)


@pytest.fixture
def tiny_model() -> SplitModel:
    """The model that running servers use: 24 weights in front, 8 floats a sample at the cut."""
    return build_model("cnn", TINY_OPTIONS, data=parse_specification(TINY_DATA), seed=0)


@pytest.fixture
def serve(tmp_path: Path, program_cache_dir: Path) -> Iterator[Callable[..., RunningServer]]:
    """Start servers; `serve(trains=False, clients=2)` takes options of `RunningServer` and of the configuration."""
    running: list[RunningServer] = []

    def start(trains: bool = True, opens: bool = True, run_dir: str = "run", **options: Any) -> RunningServer:
        config = tiny_config(run_dir=tmp_path / run_dir, program_cache=program_cache_dir, **options)
        server = RunningServer(config, trains, opens)
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def start(tmp_path: Path, program_cache_dir: Path) -> Iterator[Callable[..., Run]]:
    """Start runs whose server can be killed; `start(clients=3)` takes options of the configuration."""
    runs: list[Run] = []

    def begin(name: str = "run", **options: Any) -> Run:
        runs.append(Run(tmp_path / name, program_cache_dir, **options))
        return runs[-1]

    yield begin
    for run in runs:
        run.stop()
