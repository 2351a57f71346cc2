"""A server and a client on the two ends of what is supported of grpcio and protobuf: `make test-versions` lays these out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.harness.cluster import Cluster, wait_for_exit
from tests.harness.polling import eventually
from tests.harness.sources import ROOT

VERSIONS = ROOT / "build" / "versions"
LIBRARIES = ("grpc/_cython/cygrpc", "google/_upb/_message")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((VERSIONS / name).is_dir() for name in ("lowest", "newest")), reason="build/versions is not there: make test-versions"
    ),
]


def _environment(name: str) -> dict[str, str]:
    path = [str(VERSIONS / name)] if name != "installed" else []
    return {"PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _mapped(pid: int) -> set[str]:
    """Return the libraries of gRPC and protobuf that a running process has mapped, without what compilers add to their names."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if any(f"/{library}." in line for library in LIBRARIES)}
    return {path[: path.index(".", path.rindex("/"))] for path in paths}


def _run(directory: Path, server_on: str, client_on: str) -> dict[str, torch.Tensor]:
    with Cluster(directory) as cluster:
        options = {"clients": 1, "rounds": 3, "local_steps": 4, "server_schedule": "lockstep", "seed": 5}
        server = cluster.server(_environment(server_on), **options)
        client = cluster.client(0, 1, environment=_environment(client_on))
        for process, name in ((server, server_on), (client, client_on)):
            if name != "installed":
                expected = {str(VERSIONS / name / library) for library in LIBRARIES}
                eventually(lambda pid=process.process.pid, wanted=expected: _mapped(pid) == wanted, 60, f"{process.name} on {name}")
        assert [wait_for_exit(client), wait_for_exit(server)] == [0, 0]
        assert cluster.rounds_completed() == 3
        return cluster.final_tensors()


@pytest.mark.parametrize(("server_on", "client_on"), [("newest", "lowest"), ("lowest", "newest")])
def test_a_run_between_both_ends_is_bit_equal_to_one_on_what_is_installed(server_on: str, client_on: str, tmp_path: Path) -> None:
    expected = _run(tmp_path / "installed", "installed", "installed")
    found = _run(tmp_path / "crossed", server_on, client_on)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
