"""Real heron-server and heron-client processes on loopback, in a temporary directory, stopped with the test."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file

from heron_cli.processes import LoggedProcess, ProcessGroup, read_summary, start_server
from tests.harness.forks import ForkingGroup, Forks
from tests.harness.polling import eventually

NARROW = "front_widths=4,2 front_strides=1,2"
NARROWEST = "front_widths=4,1 front_strides=1,2"


class Cluster:
    """Starts processes and reads what they leave behind."""

    def __init__(self, directory: Path, forks: Forks | None = None) -> None:
        """With `forks` servers and clients start without their imports."""
        self.directory = directory
        self.run_dir = directory / "run"
        self._group = ForkingGroup(directory / "logs", forks) if forks is not None else ProcessGroup(directory / "logs")
        self._servers = 0
        self.address = ""

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._group.__exit__(kind, value, trace)

    def server(self, environment: Mapping[str, str] | None = None, **options: Any) -> LoggedProcess:
        """Start a server with options by name (`server_schedule="lockstep"`); `resume=True` becomes a flag."""
        words = words_of({"eval_data": "digits:test", "clients": 2, "rounds": 2, "model_options": NARROW, **options})
        self._servers += 1
        server, self.address = start_server(
            self._group, f"server-{self._servers}", run_dir=self.run_dir, arguments=words, environment=environment
        )
        return server

    def client(
        self, index: int, count: int, address: str | None = None, environment: Mapping[str, str] | None = None, **options: Any
    ) -> LoggedProcess:
        """Start the client of shard index/count; its name is client-INDEX unless given."""
        given = {
            "server": address or self.address,
            "data": "digits:train",
            "shard": f"{index}/{count}",
            "name": f"client-{index}",
            "state_dir": self.directory / "state" / str(index),
            **options,
        }
        return self._group.start(f"client-{given['name'] or index}", "heron_client", arguments=words_of(given), environment=environment)

    def clients(self, count: int, address: str | None = None, **options: Any) -> list[LoggedProcess]:
        """Start `count` clients with a shard each."""
        return [self.client(index, count, address, **options) for index in range(count)]

    def start_script(self, name: str, script: Path, arguments: list[str]) -> LoggedProcess:
        """Start a script that runs a server, and learn its address once it listens."""
        process = self._group.start_command(name, [sys.executable, str(script), *arguments])
        listening = self.run_dir / "server.json"
        eventually(lambda: listening.exists() or process.exit_code is not None, 60, "the server's address")
        if listening.exists():
            self.address = json.loads(listening.read_text())["address"]
        return process

    def start_command(self, name: str, command: list[str]) -> LoggedProcess:
        """Start any command as a process of this cluster."""
        return self._group.start_command(name, command)

    def summary(self) -> dict[str, Any]:
        """Return the run's summary."""
        return read_summary(self.run_dir)

    def rounds_completed(self) -> int:
        """Return how many rounds the summary counts."""
        return int(self.summary().get("rounds_completed", 0))

    def metrics_address(self) -> str:
        """Return host:port of the server's metrics endpoint."""
        address: str = json.loads((self.run_dir / "server.json").read_text())["metrics"]
        return address

    def final_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the newest checkpoint."""
        return load_file(sorted((self.run_dir / "checkpoints").glob("round-*.safetensors"))[-1])


def words_of(options: dict[str, Any]) -> list[str]:
    """Return options as command-line words."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words


def wait_for_exit(process: LoggedProcess, deadline_seconds: float = 120.0) -> int:
    """Return a process's exit code once it has ended; fail with its log if it does not end."""
    try:
        eventually(lambda: process.exit_code is not None, deadline_seconds, f"the end of {process.name}")
    except AssertionError as exc:
        raise AssertionError(f"{exc}; its log ends:\n{process.log.read_text()[-3000:]}") from None
    assert process.exit_code is not None
    return process.exit_code


def log_of(process: LoggedProcess) -> str:
    """Return everything that a process printed."""
    return process.log.read_text()


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
