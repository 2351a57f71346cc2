"""Updates and whole rounds over a real socket: what is averaged, what is refused, what a client may say twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_common.error_catalog import ErrorCode
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.summary import RoundRecord
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import WireClient, assigned, refused, trailer_of

Serve = Callable[..., RunningServer]


def ready(server: RunningServer) -> WireClient:
    """A client whose uploads are all accepted and trained."""
    (client,) = assigned(server, "a")
    for step in range(client.assignment.plan.local_steps):
        client.upload(step)
    eventually(lambda: server.untrained == 0, what="the trainer to be idle")
    return client


def await_close(server: RunningServer) -> None:
    """Wait until round 0 is averaged, checkpointed and done with."""
    eventually(lambda: server.state.machine.round.round_index == 1, what="the round to close")
    assert server.sample("rounds_completed_total") == 1


def test_an_update_before_its_uploads_is_incomplete(serve: Serve) -> None:
    server = serve()
    (client,) = assigned(server, "a")
    with refused(server, ErrorCode.UPDATE_INCOMPLETE):
        client.update()
    client.upload(0)
    eventually(lambda: server.untrained == 0, what="the trainer to be idle")
    with refused(server, ErrorCode.UPDATE_INCOMPLETE):
        client.update()
    client.upload(1)
    client.update()


def changed(**fields: Any) -> Callable[[WireClient], list[pb.SubmitUpdateRequest]]:
    return lambda client: client.update_parts(**fields)


def poisoned(value: float) -> Callable[[WireClient], list[pb.SubmitUpdateRequest]]:
    return lambda client: client.update_parts(np.full(client.num_front, value))


def resized(more: int) -> Callable[[WireClient], list[pb.SubmitUpdateRequest]]:
    return lambda client: client.update_parts(np.zeros(client.num_front + more))


WRONG: dict[str, tuple[ErrorCode, Callable[[WireClient], list[pb.SubmitUpdateRequest]]]] = {
    "too few steps": (ErrorCode.UPDATE_INCOMPLETE, changed(steps_completed=1)),
    "too many steps": (ErrorCode.UPDATE_INCOMPLETE, changed(steps_completed=2**32 - 1)),
    "too many weights": (ErrorCode.INVALID_TENSOR, resized(1)),
    "too few weights": (ErrorCode.INVALID_TENSOR, resized(-1)),
    "no tensors": (ErrorCode.INVALID_TENSOR, changed(tensors=[])),
    "announced too large": (ErrorCode.OVERSIZED, changed(total_bytes=2**40)),
    "announced too small": (ErrorCode.INVALID_TENSOR, changed(total_bytes=4)),
    "encoding": (ErrorCode.INVALID_TENSOR, changed(encoding=0)),
    "unknown encoding": (ErrorCode.INVALID_TENSOR, changed(encoding=9)),
    "past attempt": (ErrorCode.ROUND_OVER, changed(round=pb.RoundReference(round_index=0, attempt=5))),
    "another run": (ErrorCode.ROUND_OVER, changed(run_id="0" * 32)),
    "session": (ErrorCode.SESSION_UNKNOWN, changed(session="nobody")),
    "NaN": (ErrorCode.NON_FINITE, poisoned(math.nan)),
    "infinity": (ErrorCode.NON_FINITE, poisoned(math.inf)),
    "no trailer": (ErrorCode.TRUNCATED, lambda client: client.update_parts()[:-1]),
    "header only": (ErrorCode.TRUNCATED, lambda client: client.update_parts()[:1]),
    "no header": (ErrorCode.TRUNCATED, lambda client: client.update_parts()[1:]),
    "digest": (
        ErrorCode.DIGEST_MISMATCH,
        lambda client: [*client.update_parts()[:-1], pb.SubmitUpdateRequest(trailer=trailer_of([b"\1" * 4 * client.num_front]))],
    ),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, program_cache_dir: Path) -> Iterator[tuple[RunningServer, WireClient]]:
    """One server for all wrong updates; each test takes a round of its own."""
    config = tiny_config(run_dir=tmp_path_factory.mktemp("shared") / "run", program_cache=program_cache_dir, rounds=100)
    server = RunningServer(config)
    with WireClient(server.target) as client:
        client.join()
        yield server, client
    server.stop()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_update_is_refused_and_a_good_one_closes_the_round(shared: tuple[RunningServer, WireClient], name: str) -> None:
    server, client = shared
    current = client.await_assignment().round
    for step in range(client.assignment.plan.local_steps):
        client.upload(step)
    eventually(lambda: server.untrained == 0, what="the trainer to be idle")
    code, make = WRONG[name]
    with refused(server, code):
        client.stub.SubmitUpdate(iter(make(client)), timeout=20)
    assert client.ask(training=current).assignment.round == current, "the round is still open for this client"
    client.update()
    client.await_assignment(after=current)
    assert client.assignment.round == pb.RoundReference(round_index=current.round_index + 1, attempt=0)
    assert server.spooled_bytes == 0 and server.spooled_files == []


def test_the_next_round_starts_from_the_mean_weighted_alike_for_equal_work(serve: Serve) -> None:
    server = serve(clients=2, weighting="examples")
    a, b = assigned(server, "a", "b")
    assert a.assignment.round == b.assignment.round
    weights = {client.name: np.random.default_rng(i).standard_normal(client.num_front).astype("<f4") for i, client in enumerate((a, b))}
    for client in (a, b):
        for step in range(2):
            client.upload(step)
        client.update(weights[client.name])
    for client in (a, b):
        client.await_assignment(after=client.assignment.round)
    mean = (weights["a"].astype(np.float64) + weights["b"].astype(np.float64)) / 2
    got = np.frombuffer(a.blob(a.assignment.client_model.sha256), "<f4")
    np.testing.assert_array_equal(got, mean.astype(np.float32))
    assert a.assignment.round == pb.RoundReference(round_index=1, attempt=0)
    assert server.spooled_bytes == 0 and server.spooled_files == []


def test_a_repeated_update_is_fine_even_after_its_round_was_closed(serve: Serve) -> None:
    server = serve()
    client = ready(server)
    parts = client.update_parts()
    client.stub.SubmitUpdate(iter(parts), timeout=20)
    await_close(server)
    client.stub.SubmitUpdate(iter(parts), timeout=20)
    assert client.await_assignment(after=client.assignment.round).round.round_index == 1
    client.stub.SubmitUpdate(iter(parts), timeout=20)
    assert server.sample("rounds_completed_total") == 1 and server.spooled_bytes == 0
    assert server.state.registry.by_name["a"].rounds_completed == 1


def test_a_second_update_with_other_bytes_is_refused_and_the_first_stands(serve: Serve) -> None:
    server = serve(clients=2)
    a, b = assigned(server, "a", "b")
    for client in (a, b):
        for step in range(2):
            client.upload(step)
    eventually(lambda: server.sample("uploads_total", outcome="trained") == 4, what="the uploads to be trained")
    a.update(np.ones(a.num_front))
    with refused(server, ErrorCode.CONFLICTING_UPLOAD):
        a.update(np.zeros(a.num_front))
    b.update(np.ones(b.num_front))
    a.await_assignment(after=a.assignment.round)
    assert set(np.frombuffer(a.blob(a.assignment.client_model.sha256), "<f4")) == {1.0}


def test_a_client_that_submitted_waits_for_the_others(serve: Serve) -> None:
    server = serve(clients=2)
    a, _b = assigned(server, "a", "b")
    a.upload(0)
    a.upload(1)
    a.update()
    assert a.ask().HasField("wait")
    with refused(server, ErrorCode.NOT_IN_COHORT):
        a.upload(0)


def test_rounds_in_which_nothing_is_trained_end_with_an_empty_update(serve: Serve) -> None:
    server = serve(preset="frozen", direction_groups=1, rounds=2)
    (client,) = assigned(server, "a")
    before = client.blob(client.assignment.client_model.sha256)
    client.upload(0)
    client.upload(1)
    end = pb.SubmitUpdateRequest(trailer=trailer_of([]))
    client.stub.SubmitUpdate(iter([client.update_parts(tensors=[], total_bytes=0)[0], end]), timeout=20)
    client.await_assignment(after=client.assignment.round)
    assert client.blob(client.assignment.client_model.sha256) == before


def test_statistics_that_are_not_finite_are_refused(serve: Serve) -> None:
    server = serve()
    client = ready(server)
    numbers = [field.name for field in pb.LocalStatistics.DESCRIPTOR.fields if field.type == field.TYPE_DOUBLE]
    for name in numbers:
        for value in (math.inf, -math.inf, math.nan):
            with refused(server, ErrorCode.NON_FINITE) as caught:
                client.update(statistics=pb.LocalStatistics(**{name: value}))
            assert name in caught.value.details()
    client.update(statistics=pb.LocalStatistics(second_moment=4.0, peak_memory_bytes=2**40, forward_passes=10**15))
    await_close(server)
    assert client.await_assignment(after=client.assignment.round).second_moment == 4.0


@pytest.mark.parametrize(("reported", "following"), [((4.0, 2.0), 3.0), ((4.0, 0.0), 4.0), ((0.0, 0.0), 0.0)])
def test_the_next_round_starts_from_the_median_of_the_second_moments_that_are_known(
    serve: Serve, reported: tuple[float, float], following: float
) -> None:
    server = serve(clients=2)
    clients = assigned(server, "a", "b")
    for client, moment in zip(clients, reported, strict=True):
        for step in range(2):
            client.upload(step)
        client.update(statistics=pb.LocalStatistics(second_moment=moment))
    assert clients[0].await_assignment(after=clients[0].assignment.round).second_moment == following


def test_the_summary_is_valid_json_when_the_model_has_diverged(serve: Serve) -> None:
    server = serve(trains=False)
    server.parts.worker.rounds.append(
        RoundRecord(
            0,
            0,
            cohort=1,
            updates=1,
            test_accuracy=0.1,
            test_loss=math.nan,
            local_loss=None,
            server_loss=math.inf,
            client_forward_passes=0,
            client_forward_equivalents=0.0,
            seconds=0.0,
        )
    )
    server.parts.worker.save()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (server.directory.path / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse)["rounds_completed"] == 1


def test_the_run_finishes_after_its_rounds_and_says_so(serve: Serve) -> None:
    server = serve(rounds=2)
    (client,) = assigned(server, "a")
    client.assignment = pb.Assignment()
    for _ in range(2):
        client.run_round()
    eventually(lambda: client.ask().HasField("finished"), what="the end of the run")
    assert server.parts.ended.wait(10)
    assert server.parts.worker.failure is None
    summary = json.loads((server.directory.path / "summary.json").read_text())
    assert [row["round_index"] for row in summary["rounds"]] == [0, 1]
    assert summary["clients"]["a"]["rounds_completed"] == 2


def test_the_update_of_another_round_of_the_same_client_is_not_taken_for_a_repeat(serve: Serve) -> None:
    server = serve()
    client = ready(server)
    client.update()
    client.await_assignment(after=client.assignment.round)
    with refused(server, ErrorCode.UPDATE_INCOMPLETE):
        client.update()
    with refused(server, ErrorCode.CONFLICTING_UPLOAD):
        client.update(np.ones(client.num_front), round=pb.RoundReference(round_index=0, attempt=0))
