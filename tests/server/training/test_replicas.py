"""A back per client, averaged every round (SFLV1): the average's closed form, whose back answers whom, and what survives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from heron_proto.v1 import split_training_pb2 as pb
from heron_server.models.split_model import SplitModel
from heron_server.training.replicas import BackReplicas
from tests.harness.polling import eventually
from tests.harness.simulated import differing, run_simulation
from tests.server.rounds.interrupted import batch_seed, send, state_after, take_part
from tests.server.running_server import RunningServer
from tests.server.training.twin_back import TwinBack
from tests.server.wire_client import joined

Serve = Callable[..., RunningServer]

SFLV1: dict[str, Any] = {"preset": "sflv1", "server_schedule": "lockstep"}
RATE = 0.1


def momentum_sgd(back: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(back.parameters(), RATE, momentum=0.5)


def step(replicas: BackReplicas, client: str, seed: int) -> None:
    """Move a client's back along a gradient drawn from `seed`."""
    back, optimiser = replicas.of(client)
    generator = torch.Generator().manual_seed(seed)
    for parameter in back.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimiser.step()


def flat(module: nn.Module) -> np.ndarray[Any, Any]:
    return np.concatenate([parameter.detach().numpy().ravel().astype(np.float64) for parameter in module.parameters()])


def test_the_average_is_the_weighted_mean_of_those_who_count(tiny_model: SplitModel) -> None:
    replicas = BackReplicas(tiny_model.back, momentum_sgd)
    for seed, client in enumerate("abc"):
        step(replicas, client, seed)
    a, b, c = (flat(replicas.of(client)[0]) for client in "abc")
    assert not np.array_equal(a, b) and not np.array_equal(b, c)
    replicas.average(["a", "b"], np.array([0.25, 0.75]))
    np.testing.assert_array_equal(flat(tiny_model.back), (0.25 * a + 0.75 * b).astype(np.float32))
    for client in "abc":
        assert np.array_equal(flat(replicas.of(client)[0]), flat(tiny_model.back)), "c, which does not count, loses its steps"


def test_weights_of_those_without_a_back_of_their_own_are_shared_out(tiny_model: SplitModel) -> None:
    replicas = BackReplicas(tiny_model.back, momentum_sgd)
    step(replicas, "a", 1)
    a = flat(replicas.of("a")[0])
    replicas.average(["a", "sent nothing"], np.array([0.5, 0.5]))
    np.testing.assert_array_equal(flat(tiny_model.back), a)


def test_nobody_counts_and_the_back_stays(tiny_model: SplitModel) -> None:
    replicas = BackReplicas(tiny_model.back, momentum_sgd)
    before = flat(tiny_model.back)
    step(replicas, "a", 1)
    replicas.average([], np.array([]))
    assert np.array_equal(flat(tiny_model.back), before)
    assert np.array_equal(flat(replicas.of("a")[0]), before)


def test_moments_are_each_clients_own_and_outlive_the_average(tiny_model: SplitModel) -> None:
    replicas = BackReplicas(tiny_model.back, momentum_sgd)
    step(replicas, "a", 1)
    replicas.average(["a"], np.array([1.0]))
    before = flat(tiny_model.back)
    for client in ("a", "b"):
        step(replicas, client, 2)
    gradients = [torch.randn(p.shape, generator=g) for g in [torch.Generator().manual_seed(1)] for p in tiny_model.back.parameters()]
    earlier = np.concatenate([gradient.numpy().ravel() for gradient in gradients])
    moved = {client: flat(replicas.of(client)[0]) - before for client in ("a", "b")}
    np.testing.assert_allclose(moved["a"] - moved["b"], -RATE * 0.5 * earlier, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [momentum_sgd, lambda back: torch.optim.Adam(back.parameters(), RATE)], ids=["momentum", "adam"])
def test_a_state_that_was_kept_goes_on_bit_for_bit(tiny_model: SplitModel, make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    names = ("client-1", "a.b", "a", "1.x")
    replicas = BackReplicas(tiny_model.back, make)
    for seed, name in enumerate(names):
        step(replicas, name, seed)
    replicas.average(names, np.full(len(names), 1 / len(names)))
    kept, back = replicas.tensors(), copy.deepcopy(tiny_model.back)
    again = BackReplicas(back, make)
    again.load(kept)
    for seed, name in enumerate(names, 10):
        for one in (replicas, again):
            step(one, name, seed)
        assert np.array_equal(flat(replicas.of(name)[0]), flat(again.of(name)[0]))
    assert differing(replicas.tensors(), again.tensors()) == []
    assert all(torch.equal(value, kept[name]) for name, value in kept.items()) and differing(kept, again.tensors()), (
        "what was kept are copies"
    )


# ---- in a server ----------------------------------------------------------------------------------------------------------------------


def test_each_client_is_answered_by_its_own_back_and_the_average_starts_the_next_round(serve: Serve, tiny_model: SplitModel) -> None:
    server = serve(**SFLV1, clients=2)
    a, b = joined(server, "a", "b")
    twins = [TwinBack(tiny_model), TwinBack(tiny_model)]
    for client in (a, b):
        client.await_assignment()
    for local_step in range(a.assignment.plan.local_steps):
        for place, (client, twin) in enumerate(zip((a, b), twins, strict=True)):
            seed = batch_seed(0, local_step, place)
            z, y = client.batch(seed)
            data = send(client, local_step, seed)
            np.testing.assert_allclose(np.frombuffer(data, "<f4").reshape(z.shape), twin.cut_gradient(z, y), rtol=1e-4, atol=1e-6)
            twin.step(z, y)
    for client in (a, b):
        client.update()
    eventually(lambda: server.state.machine.round.round_index == 1, what="the round to close")
    mean = (flat(twins[0].back) + flat(twins[1].back)) / 2
    np.testing.assert_allclose(flat(server.parts.worker._trainer.model.back), mean, rtol=1e-4, atol=1e-6)


def test_the_steps_of_a_client_that_left_do_not_count(serve: Serve, tiny_model: SplitModel) -> None:
    server = serve(**SFLV1, clients=2, min_updates=1)
    a, b = joined(server, "a", "b")
    twin = TwinBack(tiny_model)
    for client in (a, b):
        client.await_assignment()
    for local_step in range(a.assignment.plan.local_steps):
        for place, client in enumerate((a, b)):
            send(client, local_step, batch_seed(0, local_step, place))
        twin.step(*a.batch(batch_seed(0, local_step, 0)))
    b.stub.Leave(pb.LeaveRequest(session=b.session))
    a.update()
    eventually(lambda: server.state.machine.round.round_index == 1, what="the round to close")
    np.testing.assert_allclose(flat(server.parts.worker._trainer.model.back), flat(twin.back), rtol=1e-4, atol=1e-6)
    take_part(server, [a], 1)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("trouble", ["crash_in", "abandon_in"])
def test_backs_survive_a_round_that_is_begun_twice(trouble: str, optimiser: str, tmp_path: Path, program_cache_dir: Path) -> None:
    options: dict[str, Any] = {**SFLV1, "program_cache": program_cache_dir, "server_optimiser": optimiser}
    if optimiser == "sgd":
        options["server_momentum"] = 0.9
    straight = state_after(tmp_path / "straight", "ab", rounds=3, **options)
    troubled = state_after(tmp_path / "troubled", "ab", rounds=3, **{trouble: 1}, **options)
    moments = "momentum_buffer" if optimiser == "sgd" else "exp_avg"
    assert {f"replica.a/0.{moments}", f"replica.b/0.{moments}"} <= set(straight)
    assert differing(troubled, straight) == []


def test_a_run_that_stops_between_rounds_and_goes_on_ends_like_one_that_did_not(tmp_path: Path) -> None:
    """With real clients; the rate must not depend on how many rounds were planned when the run began."""
    options: dict[str, Any] = {"preset": "sflv1", "local_steps": 3, "batch_size": 8, "final_rate_fraction": 1.0}
    straight = run_simulation(tmp_path / "straight", **options, rounds=4)
    run_simulation(tmp_path / "halves", **options, rounds=2)
    halves = run_simulation(tmp_path / "halves", **options, rounds=4, resume=True)
    assert len(halves.boundaries) == len(straight.boundaries)
    for one, other in zip(halves.boundaries, straight.boundaries, strict=True):
        assert differing(one, other) == []
