"""Under lockstep the network changes nothing: bit-equal weights whatever order messages arrive in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.harness.cluster import Cluster, wait_for_exit
from tests.harness.proxy import DelayingProxy


def _run(directory: Path, preset: str, delay_seed: int | None) -> dict[str, torch.Tensor]:
    with Cluster(directory) as cluster:
        server = cluster.server(preset=preset, clients=3, rounds=3, local_steps=4, server_schedule="lockstep", seed=5)
        if delay_seed is None:
            processes = cluster.clients(3)
            codes = [wait_for_exit(process) for process in [*processes, server]]
        else:
            # Each client has its own network, and the slowest is another one in every run.
            delays = (0.0, 0.03, 0.01) if delay_seed % 2 else (0.02, 0.0, 0.04)
            with (
                DelayingProxy(cluster.address, delays[0], delay_seed) as first,
                DelayingProxy(cluster.address, delays[1], delay_seed + 1) as second,
                DelayingProxy(cluster.address, delays[2], delay_seed + 2) as third,
            ):
                processes = [cluster.client(i, 3, proxy.address) for i, proxy in enumerate((first, second, third))]
                codes = [wait_for_exit(process) for process in [*processes, server]]
        assert codes == [0, 0, 0, 0]
        assert cluster.rounds_completed() == 3
        return cluster.final_tensors()


@pytest.mark.parametrize(
    "preset", ["heron", *(pytest.param(name, marks=pytest.mark.slow) for name in ("heron-server-loss", "heron-paper", "hybrid"))]
)
def test_two_runs_with_different_delays_end_bit_equal(preset: str, tmp_path: Path) -> None:
    first = _run(tmp_path / "first", preset, delay_seed=11)
    second = _run(tmp_path / "second", preset, delay_seed=None if preset == "heron-paper" else 20)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.mark.slow
def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    tensors = []
    for seed in (1, 2):
        with Cluster(tmp_path / str(seed)) as cluster:
            server = cluster.server(clients=1, rounds=1, local_steps=1, seed=seed)
            client = cluster.client(0, 1)
            assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
            tensors.append(cluster.final_tensors())
    assert not torch.equal(tensors[0]["front.0.0.weight"], tensors[1]["front.0.0.weight"])
