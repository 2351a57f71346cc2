"""Uploads of held-out samples at the server: scored before training, never trained on, and no more than were asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.algorithm.payload_shapes import evaluation_specs
from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import DType, TensorSpec, total_bytes
from heron_common.protocol.messages import UploadKey, UploadPurpose
from heron_common.specification.data_specification import Task
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.models.split_model import SplitModel
from heron_server.models.vocabulary_loss import next_token_losses
from heron_server.rounds.attempt import Attempt
from heron_server.storage.spool import SpoolEntry
from heron_server.training.evaluation import Score
from tests.harness.polling import eventually
from tests.server.builders import MODEL, ROUND, attempt, key, run_facts, upload
from tests.server.running_server import RunningServer
from tests.server.wire_client import WireClient, refused, upload_messages

Serve = Callable[..., RunningServer]
ENTRY = SpoolEntry(Path("nowhere"), 10)
HELD_OUT = {"held_out": 0.25, "evaluation_batches": 2}


# --- one attempt


def of_attempt(schedule: ServerSchedule = ServerSchedule.LOCKSTEP, evaluation_batches: int = 2) -> Attempt:
    plain = attempt(schedule=schedule)
    return Attempt(plain.assignment, run_facts(schedule, evaluation_batches=evaluation_batches), cohort=plain.cohort)


def held_out_key(client: str = "a", index: int = 0) -> UploadKey:
    return key(client, index, UploadPurpose.EVALUATE)


def admit(of: Attempt, k: UploadKey, rows: int = 4, probes: int = 0) -> tuple[TensorSpec, ...]:
    specs = evaluation_specs(of.assignment.plan, MODEL, rows)
    return of.check_upload(k, probes, tensors=specs, announced_bytes=total_bytes(specs))


def test_batches_may_be_short_and_nothing_else() -> None:
    a = of_attempt()
    for rows in (1, 3, 4):
        assert admit(a, held_out_key(), rows)[0].shape == (rows, *MODEL.cut.shape)
    z, y = evaluation_specs(a.assignment.plan, MODEL, 3)
    wrong = [
        (),
        (z,),
        (z, TensorSpec("labels", DType.INT64, (4,))),
        (TensorSpec(z.name, z.dtype, (5, 2, 2)), y),
        (TensorSpec(z.name, z.dtype, ()), y),
    ]
    for tensors in wrong:
        with pytest.raises(RefusedError) as caught:
            a.check_upload(held_out_key(), 0, tensors=tensors, announced_bytes=total_bytes(tensors))
        assert caught.value.code is ErrorCode.INVALID_TENSOR
    with pytest.raises(RefusedError) as caught:
        a.check_upload(held_out_key(), 0, tensors=(z, y), announced_bytes=total_bytes((z, y)) + 1)
    assert caught.value.code is ErrorCode.OVERSIZED


@pytest.mark.parametrize(("index", "probes", "batches"), [(2, 0, 2), (2**32 - 1, 0, 2), (0, 1, 2), (0, 0, 0)])
def test_more_than_was_asked_for_is_refused(index: int, probes: int, batches: int) -> None:
    with pytest.raises(RefusedError) as caught:
        admit(of_attempt(evaluation_batches=batches), held_out_key(index=index), probes=probes)
    assert caught.value.code is ErrorCode.UNEXPECTED_UPLOAD


def test_they_come_before_the_first_step_but_the_same_one_again_always_may() -> None:
    a = of_attempt()
    a.accept_upload(upload(held_out_key(), ENTRY))
    a.accept_upload(upload(key(), ENTRY))
    admit(a, held_out_key())
    with pytest.raises(RefusedError) as caught:
        admit(a, held_out_key(index=1))
    assert caught.value.code is ErrorCode.UNEXPECTED_UPLOAD
    admit(a, held_out_key("b"))


@pytest.mark.parametrize("schedule", [ServerSchedule.LOCKSTEP, ServerSchedule.SEQUENTIAL, ServerSchedule.SHUFFLED])
def test_training_waits_until_every_client_is_past_them_and_for_no_client_that_ended(schedule: ServerSchedule) -> None:
    a = of_attempt(schedule)
    a.accept_upload(upload(key("a"), ENTRY))
    assert a.take_uploads() == () and not a.is_needed_next(key("a"))
    assert a.is_needed_next(key("b")) and a.is_needed_next(held_out_key("b")), "it must come in whatever the spool holds"
    a.ended("b")
    assert [u.key for u in a.take_uploads()] == [key("a")]


def test_under_arrival_nobody_waits() -> None:
    a = of_attempt(ServerSchedule.ARRIVAL)
    a.accept_upload(upload(key("a"), ENTRY))
    assert len(a.take_uploads()) == 1 and not a.is_needed_next(held_out_key("b"))


def test_they_count_neither_as_uploads_nor_as_rows_and_are_held_until_a_checkpoint_covers_them() -> None:
    a = of_attempt(ServerSchedule.ARRIVAL)
    scored = upload(held_out_key(), ENTRY)
    a.accept_upload(scored)
    assert a.uploads == {} and a.rows_of("a") == 0 and a.take_uploads() == ()
    assert a.entries() == [ENTRY] and a.known_digest(held_out_key()) == "d" and a.known_digest(key()) is None
    assert a.held_out.take() is scored and a.held_out.take() is None
    scored.trained = True
    assert a.entries() == [ENTRY] and a.covered_bytes() == ENTRY.size_bytes
    assert a.give_up_covered() == ([scored], [], [ENTRY])
    assert a.entries() == [] and a.covered_bytes() == 0 and a.assignment.round == ROUND


# --- over the wire


def joined(server: RunningServer, name: str = "a") -> WireClient:
    client = WireClient(server.target, name)
    response = client.join()
    assert (response.held_out, response.evaluation_batches) == (0.25, 2)
    client.await_assignment()
    return client


def parts(client: WireClient, index: int, rows: int = 3, seed: int = 0) -> list[pb.TrainBatchRequest]:
    z, y = client.batch(seed)
    z, y = z[:rows], y[:rows]
    tensors = [
        pb.TensorSpec(name="activations", dtype=pb.DTYPE_FLOAT32, shape=z.shape),
        pb.TensorSpec(name="labels", dtype=pb.DTYPE_INT64, shape=y.shape),
    ]
    header = client.upload_header(index, purpose=pb.UPLOAD_PURPOSE_EVALUATE, tensors=tensors, total_bytes=z.nbytes + y.nbytes)
    return upload_messages(header, [z.tobytes(), y.tobytes()])


def train(client: WireClient) -> None:
    for step in range(client.assignment.plan.local_steps):
        client.upload(step)
    client.update()


def scored(server: RunningServer) -> float:
    return server.sample("uploads_total", outcome="scored")


def state_of(server: RunningServer) -> tuple[int, dict[str, torch.Tensor]]:
    trainer = server.parts.worker._trainer
    return trainer.server_version, trainer.tensors()


@pytest.mark.parametrize("schedule", ["arrival", "lockstep"])
def test_rows_of_a_hostile_client_change_nothing_and_count_once(serve: Serve, schedule: str) -> None:
    server = serve(**HELD_OUT, server_schedule=schedule)
    client = joined(server)
    version, before = state_of(server)
    for index, seed in ((0, 1), (1, 2), (1, 2)):
        answer = client.send_upload(parts(client, index, seed=seed))
        assert (answer.server_version, list(answer.probe_losses), list(answer.losses)) == (0, [], [])
    eventually(lambda: scored(server) == 2, what="both batches to be scored")
    for index in (2, 3):
        with refused(server, ErrorCode.UNEXPECTED_UPLOAD):
            client.send_upload(parts(client, index))
    with refused(server, ErrorCode.INVALID_TENSOR):
        client.send_upload(oversized(client))
    now, after = state_of(server)
    assert now == version == 0 and all(torch.equal(after[name], value) for name, value in before.items())
    assert len(server.spooled_files) == 2, "until a checkpoint covers them"
    record = server.state.registry.by_name["a"]
    assert set(record.bytes_up) == {"control", "evaluation"}


def oversized(client: WireClient) -> list[pb.TrainBatchRequest]:
    """Return a batch of one sample more than a batch has."""
    messages = parts(client, 0, rows=4)
    for tensor in messages[0].header.tensors:
        tensor.shape[0] = 5
    return messages


def test_other_bytes_for_the_same_batch_exclude_their_client(serve: Serve) -> None:
    server = serve(**HELD_OUT, clients=2, min_updates=1)
    a, _ = WireClient(server.target, "a"), WireClient(server.target, "b").join()
    a.join()
    a.await_assignment()
    a.send_upload(parts(a, 0, seed=1))
    eventually(lambda: scored(server) == 1, what="the batch to be scored")
    with refused(server, ErrorCode.CONFLICTING_UPLOAD):
        a.send_upload(parts(a, 0, seed=2))


def test_a_client_that_joins_again_in_mid_round_repeats_its_batches_and_each_counts_once(serve: Serve) -> None:
    server = serve(**HELD_OUT, rounds=1)
    client = joined(server)
    for index in (0, 1):
        client.send_upload(parts(client, index))
    client.upload(0)
    client.join()
    client.await_assignment()
    for index in (0, 1):
        client.send_upload(parts(client, index))
    train(client)
    eventually(lambda: len(server.parts.worker.rounds) == 1, what="the round")
    assert server.parts.worker.rounds[0].federated_examples == 6 and scored(server) == 2


def test_a_round_without_any_says_so_and_one_with_some_scores_the_model_it_started_from(serve: Serve) -> None:
    server = serve(**HELD_OUT, rounds=2)
    client = joined(server)
    train(client)
    client.await_assignment(client.assignment.round)
    client.send_upload(parts(client, 0, rows=3))
    train(client)
    eventually(lambda: len(server.parts.worker.rounds) == 2, what="two rounds")
    silent, heard = server.parts.worker.rounds
    assert silent.federated_of_round is None and silent.federated_examples == 0 and silent.federated_figures() == []
    assert (heard.federated_of_round, heard.federated_examples) == (0, 3)
    assert (heard.federated_first_version, heard.federated_last_version) == (2, 2)
    assert [name for name, _ in heard.federated_figures()] == ["held-out accuracy, round 1", "held-out loss, round 1"]
    assert heard.federated_accuracy == server.sample("federated_accuracy") and heard.federated_loss == server.sample("federated_loss")


def test_an_abandoned_attempt_takes_its_score_along(serve: Serve) -> None:
    server = serve(**HELD_OUT, rounds=1)
    client = joined(server)
    client.send_upload(parts(client, 0))
    eventually(lambda: scored(server) == 1, what="the batch to be scored")
    first = client.assignment.round
    server.advance(server.config.rounds.round_deadline_seconds + 1)
    client.await_assignment(first)
    train(client)
    eventually(lambda: len(server.parts.worker.rounds) == 1, what="the round")
    assert server.parts.worker.rounds[0].federated_examples == 0


# --- scores


@pytest.mark.parametrize("task", Task)
def test_scores_of_parts_add_up_to_the_score_of_the_whole(task: Task, tiny_model: SplitModel) -> None:
    generator = np.random.default_rng(0)
    losses: dict[Task, Any] = {
        Task.CLASSIFICATION: tiny_model.sample_losses,
        Task.REGRESSION: lambda outputs, y: (outputs - y).square().mean(1),
        Task.NEXT_TOKEN: next_token_losses,
    }
    model = dataclasses.replace(tiny_model, task=task, sample_losses=losses[task])
    shape = (12, 5, 3) if task is Task.NEXT_TOKEN else (12, 3)
    outputs = torch.from_numpy(generator.standard_normal(shape).astype(np.float32))
    labels = torch.from_numpy(generator.integers(0, 3, shape[:-1]))
    if task is Task.NEXT_TOKEN:
        labels[3:, 2:] = -100
    if task is Task.REGRESSION:
        labels = torch.from_numpy(generator.standard_normal(shape).astype(np.float32))

    def of_task(logits: torch.Tensor) -> Any:
        return (logits, torch.eye(3)) if task is Task.NEXT_TOKEN else logits

    whole, total = Score(model), Score(model)
    whole.add(of_task(outputs), labels)
    for part in (slice(0, 5), slice(5, 12)):
        one = Score(model)
        one.add(of_task(outputs[part]), labels[part])
        total.include(one)
    found, expected = total.result(), whole.result()
    assert found.accuracy == expected.accuracy and found.num_examples == 12
    assert found.loss == pytest.approx(expected.loss) and (found.perplexity is None) == (task is not Task.NEXT_TOKEN)
