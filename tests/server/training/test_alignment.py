"""Heads of the clients' own, fitted to the back's gradients at the cut (FSL-SAGE): what an alignment does, who gets which head, and what survives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from heron_common.algorithm.algorithm import Alignment
from heron_common.error_catalog import ErrorCode
from heron_server.models.split_model import SplitModel, flat_parameters, load_flat_parameters
from heron_server.training.alignment import ALIGNMENT_BATCH, HeadAlignment
from heron_server.training.uploads import DecodedUpload
from tests.harness.simulated import differing, run_simulation
from tests.server.rounds.interrupted import state_after, take_part
from tests.server.running_server import RunningServer
from tests.server.wire_client import joined, refused

Serve = Callable[..., RunningServer]

CUT = (2, 2, 2)
CLASSES = 3


def rows(count: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, *CUT)).astype(np.float32), generator.integers(0, CLASSES, count)


def gap(model: SplitModel, head: np.ndarray[Any, Any], z: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Return the mean over rows of |d loss(head(z)) / d z - d loss(back(z)) / d z|^2, a row at a time."""
    own = copy.deepcopy(model.auxiliary_head)
    load_flat_parameters(own, head)
    total = 0.0
    for sample, label in zip(torch.from_numpy(z), torch.from_numpy(y), strict=True):
        found, wanted = (
            torch.autograd.grad(cross_entropy(module(one), label[None]), one)[0]
            for module, one in ((own, sample[None].clone().requires_grad_()), (model.back, sample[None].clone().requires_grad_()))
        )
        total += float((found - wanted).square().sum())
    return total / len(y)


def test_the_gap_between_the_gradients_shrinks_with_every_alignment(tiny_model: SplitModel) -> None:
    alignment = HeadAlignment(tiny_model, Alignment(epochs=8, learning_rate=1e-2))
    z, y = rows(2 * ALIGNMENT_BATCH + 5)
    gaps = [gap(tiny_model, flat_parameters(tiny_model.auxiliary_head), z, y)]
    back = copy.deepcopy(tiny_model.back.state_dict())
    head = copy.deepcopy(tiny_model.auxiliary_head.state_dict())
    for _ in range(3):
        alignment.keep("a", DecodedUpload(z, y))
        assert alignment.align() is not None
        alignment.forget()
        gaps.append(gap(tiny_model, alignment.heads["a"], z, y))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 3
    for before, module in ((back, tiny_model.back), (head, tiny_model.auxiliary_head)):
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items()), "back and common head stay as they are"


def test_an_alignment_uses_the_latest_rows_only(tiny_model: SplitModel) -> None:
    settings = Alignment(epochs=2, max_rows=10)
    few, many = HeadAlignment(tiny_model, settings), HeadAlignment(tiny_model, settings)
    uploads = [rows(4, seed) for seed in range(6)]
    for z, y in uploads:
        many.keep("a", DecodedUpload(z, y))
    for z, y in ((uploads[3][0][2:], uploads[3][1][2:]), *uploads[4:]):
        few.keep("a", DecodedUpload(z, y))
    assert few.align() == many.align()
    assert few.heads["a"].tobytes() == many.heads["a"].tobytes()


def test_nobody_uploaded_and_nobody_is_aligned(tiny_model: SplitModel) -> None:
    alignment = HeadAlignment(tiny_model, Alignment())
    assert alignment.align() is None
    alignment.keep("a", DecodedUpload(*rows(4)))
    alignment.forget()
    assert alignment.align() is None and alignment.heads == {}


@pytest.mark.parametrize(("interval", "due"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3])])
def test_heads_are_aligned_every_so_many_rounds_beginning_with_the_first(tiny_model: SplitModel, interval: int, due: list[int]) -> None:
    alignment = HeadAlignment(tiny_model, Alignment(interval_rounds=interval))
    assert [index for index in range(4) if alignment.is_due(index)] == due


def test_rows_on_which_no_head_can_be_fitted_leave_it_as_it_was(tiny_model: SplitModel) -> None:
    alignment = HeadAlignment(tiny_model, Alignment(epochs=2))
    alignment.keep("a", DecodedUpload(*rows(8)))
    alignment.align()
    before = alignment.heads["a"].copy()
    z, y = rows(8, seed=1)
    alignment.keep("a", DecodedUpload(np.where(z > 0, np.float32(3e38), np.float32(-3e38)), y))
    alignment.align()
    assert alignment.heads["a"].tobytes() == before.tobytes()


# ---- in a server ----------------------------------------------------------------------------------------------------------------------


SAGE = {"preset": "fsl-sage", "server_schedule": "lockstep"}


def test_clients_start_with_one_head_and_then_get_their_own_and_no_other(serve: Serve) -> None:
    server = serve(**SAGE, clients=2)
    a, b = joined(server, "a", "b")
    take_part(server, [a, b], 0)
    assert a.assignment.auxiliary_head == b.assignment.auxiliary_head
    common = a.blob(a.assignment.auxiliary_head.sha256)
    for client in (a, b):
        client.await_assignment(after=client.assignment.round)
    heads = [client.blob(client.assignment.auxiliary_head.sha256) for client in (a, b)]
    assert len({common, *heads}) == 3
    assert a.assignment.client_model == b.assignment.client_model
    assert heads == [server.parts.worker._alignment.heads[name].tobytes() for name in "ab"]
    for client, other in ((a, b), (b, a)):
        with refused(server, ErrorCode.BLOB_UNKNOWN):
            client.blob(other.assignment.auxiliary_head.sha256)


@pytest.mark.parametrize("trouble", ["crash_in", "abandon_in"])
def test_own_heads_survive_a_round_that_is_begun_twice(trouble: str, tmp_path: Path, program_cache_dir: Path) -> None:
    options: dict[str, Any] = {**SAGE, "program_cache": program_cache_dir}
    straight = state_after(tmp_path / "straight", "ab", rounds=3, **options)
    troubled = state_after(tmp_path / "troubled", "ab", rounds=3, **{trouble: 1}, **options)
    assert {"aligned_head.a", "aligned_head.b"} <= set(straight)
    assert differing(troubled, straight) == []


def test_a_run_that_stops_between_rounds_and_goes_on_ends_like_one_that_did_not(tmp_path: Path) -> None:
    """With real clients; the rate must not depend on how many rounds were planned when the run began."""
    options: dict[str, Any] = {"preset": "fsl-sage", "local_steps": 3, "batch_size": 8, "final_rate_fraction": 1.0}
    straight = run_simulation(tmp_path / "straight", **options, rounds=4)
    run_simulation(tmp_path / "halves", **options, rounds=2)
    halves = run_simulation(tmp_path / "halves", **options, rounds=4, resume=True)
    assert len(halves.boundaries) == len(straight.boundaries)
    for one, other in zip(halves.boundaries, straight.boundaries, strict=True):
        assert differing(one, other) == []
    last = straight.boundaries[-1]
    assert not torch.equal(last["aligned_head.client-0"], last["aligned_head.client-1"])
