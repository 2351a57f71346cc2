"""The shuffled schedule (a step's uploads mixed into batches), and the aggregation rules in a real server."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from heron_common.algorithm.aggregation_rule import AggregationRule
from heron_common.ids import RoundReference
from heron_common.numerics.directions import PerturbationSeed, derive_seed
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.models.split_model import SplitModel
from heron_server.training.uploads import DecodedUpload, mixed_batches
from tests.harness.polling import eventually
from tests.harness.simulated import differing, run_simulation
from tests.server.running_server import RunningServer
from tests.server.wire_client import assigned

Serve = Callable[..., RunningServer]

SEED = 6


def numbered(num_uploads: int, batch_size: int) -> list[DecodedUpload]:
    """Uploads whose rows say where they come from: activations [upload, row], label the row's number over all."""
    return [
        DecodedUpload(
            np.stack([np.full(batch_size, upload), np.arange(batch_size)], axis=1).astype(np.float32),
            np.arange(batch_size) + upload * batch_size,
        )
        for upload in range(num_uploads)
    ]


sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3)).map(lambda t: (t[0], t[0] * t[1] + t[2]))


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(0, 2**64 - 1))
def test_mixing_deals_every_row_once_and_keeps_it_with_its_label_and_source(size: tuple[int, int], low: int) -> None:
    num_uploads, batch_size = size
    batches = mixed_batches(numbered(num_uploads, batch_size), PerturbationSeed(low, 1))
    assert [len(batch.rows.labels) for batch in batches] == [batch_size] * num_uploads
    dealt = [label for batch in batches for label in batch.rows.labels]
    assert sorted(dealt) == list(range(num_uploads * batch_size)), "nothing lost, nothing twice"
    for batch in batches:
        for activation, label, source in zip(batch.rows.activations, batch.rows.labels, batch.sources, strict=True):
            assert activation.tolist() == [source, label - source * batch_size]
            assert label // batch_size == source


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(0, 2**64 - 1))
def test_every_batch_has_an_equal_share_of_every_upload(size: tuple[int, int], low: int) -> None:
    num_uploads, batch_size = size
    for batch in mixed_batches(numbered(num_uploads, batch_size), PerturbationSeed(low, 1)):
        counts = np.bincount(batch.sources, minlength=num_uploads)
        assert counts.max() - counts.min() <= 1, "equal but for a remainder"
        assert batch_size % num_uploads or len(set(counts)) == 1


def test_mixing_is_a_function_of_its_seed_and_draws_rows_at_random() -> None:
    uploads = numbered(3, 60)
    one, same, other = (mixed_batches(uploads, PerturbationSeed(low, 2)) for low in (5, 5, 6))
    for a, b in zip(one, same, strict=True):
        assert a.rows.labels.tolist() == b.rows.labels.tolist()
    assert any(a.rows.labels.tolist() != b.rows.labels.tolist() for a, b in zip(one, other, strict=True))
    # Of the 20 rows that a batch takes of an upload of 60, a third lies in any third of it; 5 standard deviations of the hypergeometric count are 9.
    for batch in one:
        of_first = batch.rows.labels[batch.sources == 0]
        assert abs(int(np.sum(of_first < 20)) - 20 / 3) < 9


def twin_steps(
    model: SplitModel, uploads: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], seeds: list[PerturbationSeed]
) -> tuple[torch.nn.Module, list[list[float]]]:
    """Train a copy of the back on the mixed batches of each step; return it and each step's losses by upload, all rows looked up one by one."""
    back = copy.deepcopy(model.back)
    steps = torch.optim.Adam(back.parameters(), 2e-3)
    all_losses = []
    for step, seed in enumerate(seeds):
        of_step = [DecodedUpload(*uploads[2 * step + n]) for n in range(2)]
        by_row: dict[bytes, float] = {}
        for batch in mixed_batches(of_step, seed):
            losses = cross_entropy(back(torch.from_numpy(batch.rows.activations)), torch.from_numpy(batch.rows.labels), reduction="none")
            by_row |= {row.tobytes(): float(loss) for row, loss in zip(batch.rows.activations, losses.detach(), strict=True)}
            steps.zero_grad()
            losses.mean().backward()
            steps.step()
        all_losses.append([float(np.mean([by_row[row.tobytes()] for row in upload.activations])) for upload in of_step])
    return back, all_losses


def test_each_upload_hears_the_mean_loss_of_its_own_rows(serve: Serve, tiny_model: SplitModel) -> None:
    server = serve(preset="heron", server_schedule="shuffled", clients=2, seed=0, head_training="client")
    clients = assigned(server, "a", "b")
    steps = clients[0].assignment.plan.local_steps
    uploads = []
    for step in range(steps):
        for number, client in enumerate(clients):
            uploads.append(client.batch(10 * step + number))
            client.upload(step, seed=10 * step + number)
    eventually(lambda: server.sample("uploads_total", outcome="trained") == 2 * steps, what="the trainer to be done")
    seeds = [derive_seed(0, "", round_reference=RoundReference(0, 0), purpose="mix", index=step) for step in range(steps)]
    back, expected = twin_steps(tiny_model, uploads, seeds)
    for number, client in enumerate(clients):
        losses = client.ask().losses
        assert [loss.local_step for loss in losses] == list(range(steps))
        np.testing.assert_allclose([loss.server_loss for loss in losses], [of_step[number] for of_step in expected], rtol=1e-5)
        assert [loss.server_version for loss in losses] == [2 * step for step in range(steps)]
    for got, want in zip(server.parts.worker._trainer.model.back.parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_step_is_mixed_once_all_who_are_left_have_sent_it(serve: Serve) -> None:
    server = serve(preset="heron", server_schedule="shuffled", clients=3, min_updates=1)
    a, b, c = assigned(server, "a", "b", "c")
    a.upload(0)
    b.upload(0)
    assert server.sample("uploads_total", outcome="trained") == 0, "c's rows belong into the same batches"
    c.stub.Leave(pb.LeaveRequest(session=c.session))
    eventually(lambda: server.sample("uploads_total", outcome="trained") == 2, what="the step to be mixed without c")
    a.upload(1)
    server.advance(server.config.rounds.liveness_seconds * 0.9)
    a.ask()
    server.advance(server.config.rounds.liveness_seconds * 0.2)
    eventually(lambda: server.sample("uploads_total", outcome="trained") == 3, what="the step to be trained without b, which went silent")
    a.update()
    eventually(
        lambda: server.sample("rounds_completed_total") == 1 and server.spooled_bytes == 0,
        what="the round to close and the spool to be empty",
    )
    assert server.parts.worker.rounds[0].updates == 1


@pytest.mark.parametrize("preset", ["heron", "cse-fsl"])
def test_a_run_of_mixed_steps_is_repeated_bit_for_bit(preset: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"preset": preset, "clients": 3, "rounds": 2, "local_steps": 3, "batch_size": 8, "seed": SEED}
    one, other = (run_simulation(tmp_path / name, **options, server_schedule="shuffled").boundaries for name in ("one", "other"))
    for before, after in zip(one, other, strict=True):
        assert differing(before, after) == []
    unmixed = run_simulation(tmp_path / "lockstep", **options, server_schedule="lockstep").boundaries
    assert "back.1.weight" in differing(one[-1], unmixed[-1]), "mixing is not lockstep under another name"


HONEST = [np.float32(value) for value in (1.0, 1.25, 1.5, 2.0)]
LIAR = np.float32(1e6)


@pytest.mark.parametrize("rule", list(AggregationRule))
def test_one_liar_among_five_moves_the_mean_anywhere_and_no_other_rule(serve: Serve, rule: AggregationRule) -> None:
    server = serve(preset="heron", update_encoding="dense", aggregation=rule.value, clients=5, rounds=2)
    clients = assigned(server, *"abcde")
    start = float(np.abs(np.frombuffer(clients[0].blob(clients[0].assignment.client_model.sha256), "<f4")).max())
    for step in range(clients[0].assignment.plan.local_steps):
        for client in clients:
            client.upload(step)
    for client, value in zip(clients, [*HONEST, LIAR], strict=True):
        client.update(np.full(client.num_front, value))
    closed = eventually(lambda: clients[0].ask().assignment.round.round_index == 1 and clients[0].ask().assignment, what="the next round")
    combined = np.frombuffer(clients[0].blob(closed.client_model.sha256), "<f4")
    if rule is AggregationRule.MEAN:
        np.testing.assert_allclose(combined, np.mean([*HONEST, LIAR]), rtol=1e-6)
        return
    # Clipped to the length of an ordinary client's step, a liar still pulls, with its weight of a fifth.
    slack = (max(HONEST) + start) if rule is AggregationRule.NORM_CLIPPED_MEAN else 0.0
    assert combined.min() >= min(HONEST) - slack and combined.max() <= max(HONEST) + slack
    exact = {
        AggregationRule.MEDIAN: np.median([*HONEST, LIAR]),
        AggregationRule.TRIMMED_MEAN: np.mean(HONEST[1:]),
        AggregationRule.MULTI_KRUM: np.mean(HONEST),
    }
    if rule in exact:
        np.testing.assert_array_equal(combined, np.float32(exact[rule]))
