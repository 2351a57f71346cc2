"""Whole rounds of scripted clients, in one go or with a crash in the middle of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heron_proto.v1 import split_training_pb2 as pb
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import DEADLINE, WireClient, joined

LOST_SEED = 12345


def send(client: WireClient, step: int, seed: int) -> bytes:
    """Upload one step and return lambda, if there is any."""
    responses = client.stub.TrainBatch(iter(client.upload_parts(step, seed)), timeout=DEADLINE)
    return b"".join(part.chunk.data for part in responses if part.WhichOneof("part") == "chunk")


def batch_seed(round_index: int, step: int, place: int) -> int:
    """Return the seed of one upload's content: it depends on the round, not on the attempt."""
    return 1000 * round_index + 10 * step + place


def weights_of(client: WireClient, round_index: int, place: int) -> np.ndarray[Any, Any]:
    """Return the weights that a client submits."""
    return np.random.default_rng(batch_seed(round_index, 0, place)).standard_normal(client.num_front).astype(np.float32)


def take_part(server: RunningServer, clients: list[WireClient], round_index: int) -> None:
    """All clients do a whole round, step after step; returns when the server has closed it."""
    for client in clients:
        client.await_assignment(after=client.assignment.round if client.assignment.HasField("round") else None)
        assert client.assignment.round.round_index == round_index
    for step in range(clients[0].assignment.plan.local_steps):
        for place, client in enumerate(clients):
            send(client, step, batch_seed(round_index, step, place))
    for place, client in enumerate(clients):
        client.update(weights_of(client, round_index, place))
    eventually(lambda: server.state.machine.round.round_index == round_index + 1, what="the round to close")


def _take_a_step(server: RunningServer, clients: list[WireClient], seed: int) -> None:
    for client in clients:
        client.await_assignment(after=client.assignment.round if client.assignment.HasField("round") else None)
    trained = server.sample("uploads_total", outcome="trained")
    send(clients[0], 0, seed)
    eventually(lambda: server.sample("uploads_total", outcome="trained") == trained + 1, what="a step that will be interrupted")


def _leave_and_come_back(server: RunningServer, client: WireClient) -> None:
    abandoned = server.sample("rounds_abandoned_total")
    client.stub.Leave(pb.LeaveRequest(session=client.session), timeout=DEADLINE)
    eventually(lambda: server.sample("rounds_abandoned_total") == abandoned + 1, what="the attempt to be abandoned")
    client.join()


def state_after(
    directory: Path, names: str, rounds: int, crash_in: int | None = None, abandon_in: int | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    """Return everything that a checkpoint holds after so many rounds of the clients with these one-letter names.

    In round `crash_in` the run directory is copied after one server step, as kill -9 would leave it, and a new server goes on from the copy;
    clients begin the round again, and the step is not taken twice.
    In round `abandon_in` the last client leaves after one server step, so that the attempt is abandoned, and comes back: that step is undone.
    """
    server = RunningServer(tiny_config(run_dir=directory, clients=len(names), min_updates=len(names), **options))
    try:
        clients = joined(server, *names)
        for index in range(rounds):
            if index == crash_in:
                _take_a_step(server, clients, batch_seed(index, 0, 0))
            if index == abandon_in:
                _take_a_step(server, clients, LOST_SEED)
            if index == abandon_in:
                _leave_and_come_back(server, clients[-1])
            if index == crash_in:
                copied = directory.with_name(f"{directory.name}-copy")
                shutil.copytree(directory, copied)
                server.stop()
                server = RunningServer(tiny_config(run_dir=copied, clients=len(names), min_updates=len(names), resume=True, **options))
                clients = joined(server, *names)
            take_part(server, clients, index)
        return server.parts.worker._tensors()
    finally:
        server.stop()
