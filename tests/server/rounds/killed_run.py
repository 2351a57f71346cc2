"""A run in this process whose server is killed: its directory is copied as it is at that moment, and a new server goes on from the copy."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.harness.polling import eventually
from tests.server.rounds.interrupted import batch_seed, send, take_part
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import WireClient, joined

Tensors = dict[str, torch.Tensor]


class Run:
    """One run whose server is killed: its directory is copied as it is at that moment, and a new server goes on from the copy."""

    def __init__(self, directory: Path, cache: Path, trains: bool = True, **options: Any) -> None:
        self._options = {"program_cache": cache, "clients": 2, "min_updates": 2, "local_steps": 4, "server_schedule": "lockstep", **options}
        self._directory = directory
        self._servers: list[RunningServer] = []
        self.start(trains=trains)

    @property
    def server(self) -> RunningServer:
        return self._servers[-1]

    @property
    def path(self) -> Path:
        return self.server.directory.path

    def start(self, resume: bool = False, trains: bool = True) -> RunningServer:
        given = {**self._options, **({"resume": True} if resume else {})}
        self._servers.append(RunningServer(tiny_config(run_dir=self._directory, **given), trains))
        return self.server

    def kill(self, between: Callable[[Path], None] = lambda _: None) -> RunningServer:
        copied = self._directory.with_name(f"{self._directory.name}-copy")
        shutil.copytree(self._directory, copied)
        self.stop()
        self._directory = copied
        between(copied)
        return self.start(resume=True)

    def stop(self) -> None:
        self.server.stop()

    def trained(self, count: int) -> None:
        """Wait until so many uploads of the open attempt are trained."""
        eventually(lambda: self.server.untrained == 0 and (a := self.server.state.attempt) and a.positions == count, what="training")

    def tensors(self) -> Tensors:
        return self.server.parts.worker._tensors()


def begin_round(clients: list[WireClient], round_index: int, steps: int) -> None:
    """All clients ask for work and upload the first steps of a round."""
    for client in clients:
        client.await_assignment(after=client.assignment.round if client.assignment.HasField("round") else None)
    upload_steps(clients, round_index, range(steps))


def upload_steps(clients: list[WireClient], round_index: int, steps: range) -> None:
    for step in steps:
        for place, client in enumerate(clients):
            send(client, step, batch_seed(round_index, step, place))


def undisturbed(start: Callable[..., Run], rounds: int, **options: Any) -> Tensors:
    run = start("undisturbed", **options)
    clients = joined(run.server, "a", "b")
    for index in range(rounds):
        take_part(run.server, clients, index)
    return run.tensors()


def unlike(one: Tensors, other: Tensors) -> list[str]:
    return [name for name in sorted({*one, *other}) if name not in one or name not in other or not torch.equal(one[name], other[name])]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(bytes(data))


def edit_ledger(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path / "ledger.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()
