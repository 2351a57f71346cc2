"""The server's life over a real socket: health, silence, abandoned attempts, drain, unexpected errors, a trainer that dies, a start that fails."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heron_common.error_catalog import ErrorCode
from heron_common.errors import ConfigurationError, ParityError
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.app import _drain
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer, tiny_config
from tests.server.wire_client import OpenStream, WireClient, assigned, refused

Serve = Callable[..., RunningServer]


def health_of(client: WireClient, service: str) -> int:
    return health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


@pytest.mark.parametrize("service", ["", "heron.v1.SplitTraining"])
def test_health_is_serving_until_the_drain_is_announced(serve: Serve, service: str) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        assert health_of(client, service) == health_pb2.HealthCheckResponse.SERVING
        server.parts.network.announce_drain()
        assert health_of(client, service) == health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_of_an_unknown_service_is_not_found(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client, pytest.raises(grpc.RpcError) as caught:
        health_of(client, "other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_draining_server_admits_nothing_and_keeps_what_is_checkpointed(serve: Serve) -> None:
    server = serve(clients=1)
    (client,) = assigned(server, "a")
    client.upload(0)
    eventually(lambda: server.untrained == 0, what="the trainer to be idle")
    server.parts.owner.drain()
    with WireClient(server.target, "late") as late:
        for call in (client.ask, lambda: client.upload(1), client.update, late.join):
            with refused(server, ErrorCode.DRAINING):
                call()
    assert server.parts.worker.join(10)
    assert server.sample("phase", phase="draining") == 1
    assert server.sample("rounds_completed_total") == 0


def test_a_draining_server_closes_the_round_that_is_closing_and_opens_no_other(serve: Serve) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    for step in range(client.assignment.plan.local_steps):
        client.upload(step)
    client.update()
    server.parts.owner.drain()
    server.start_training()
    assert server.parts.worker.join(10)
    assert server.sample("rounds_completed_total") == 1
    assert server.state.attempt is None
    assert server.parts.ledger.begun_attempts() == {0: 0}


def test_an_unexpected_error_is_internal_and_tells_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret /path/to/somewhere")

    monkeypatch.setattr(server.parts.owner, "next_step", fail)
    monkeypatch.setattr(server.parts.spool, "open", fail)
    for call in (client.ask, lambda: client.upload(0)):
        with refused(server, ErrorCode.INTERNAL) as caught:
            call()
        assert "secret" not in caught.value.details() and "ZeroDivision" not in caught.value.details()
    monkeypatch.undo()
    client.upload(0)
    assert client.ask().HasField("assignment")


def test_an_error_while_writing_frees_the_stream_and_the_spool(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    with monkeypatch.context() as patch:
        patch.setattr("heron_server.service.streams.check_values", lambda *_, **__: 1 / 0)
        with refused(server, ErrorCode.INTERNAL):
            client.upload(0)
    client.upload(0)


def test_a_silent_client_is_dropped_and_its_next_message_revives_it(serve: Serve) -> None:
    server = serve(trains=False, clients=3, min_updates=1)
    a, b, c = assigned(server, "a", "b", "c")
    liveness = server.config.rounds.liveness_seconds
    server.advance(liveness)
    a.ask()
    b.ask()
    server.advance(1.0)
    assert server.sample("connected_clients") == 2
    assert server.sample("dropped_clients_total", reason="went_silent") == 1
    assert c.ask().HasField("wait"), "its session stands, but it sits the attempt out"
    server.advance(0.0)
    assert server.sample("connected_clients") == 3
    with refused(server, ErrorCode.NOT_IN_COHORT):
        c.upload(0)


def test_every_chunk_is_a_sign_of_life(serve: Serve) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    parts = client.upload_parts(0)
    stream = OpenStream(client).send(parts[0])
    record = server.state.registry.by_name["a"]
    eventually(lambda: record.stream, what="the stream to be admitted")
    for number, part in enumerate(parts[1:3]):
        server.advance(server.config.rounds.liveness_seconds * 0.9)
        stream.send(part)
        eventually(lambda n=number: len(server.state.registry.by_name["a"].bytes_up) == n + 2, what="the chunk to be counted")
    stream.send(parts[3]).finish()
    assert server.sample("dropped_clients_total", reason="went_silent") == 0


def test_every_piece_of_a_long_download_is_a_sign_of_life(serve: Serve) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    # Far more than the transport reads ahead, so that pieces leave the server while the clock moves.
    reference = server.parts.owner._blobs.put(bytes(64 << 20))
    server.state.facts.blob_kinds[reference.sha256] = "base"

    def sent() -> int:
        return server.state.registry.by_name["a"].bytes_down.get("base", 0)

    parts = iter(client.stub.FetchBlob(pb.FetchBlobRequest(session=client.session, sha256=reference.sha256), timeout=60))
    for _ in range(3):
        server.advance(server.config.rounds.liveness_seconds * 0.9)
        before = sent()
        for _ in range(16):
            next(parts)
        eventually(lambda b=before: sent() > b, what="a piece that leaves after the clock moved")
    server.advance(0.0)
    assert server.sample("dropped_clients_total", reason="went_silent") == 0


def test_an_abandoned_attempt_goes_back_to_the_round_boundary_and_frees_its_uploads(serve: Serve) -> None:
    server = serve(clients=2, min_updates=2)
    a, b = assigned(server, "a", "b")
    trainer = server.parts.worker._trainer
    boundary = trainer.tensors()
    a.upload(0)
    eventually(lambda: trainer.server_version == 1, what="a server step")
    b.stub.Leave(pb.LeaveRequest(session=b.session))
    # The model is back before the attempt is over, and its uploads are freed last: whoever looks in between sees both in motion.
    eventually(lambda: server.sample("rounds_abandoned_total") == 1 and server.state.attempt is None, what="the way back")
    assert trainer.server_version == 0
    assert all(torch.equal(value, boundary[name]) for name, value in trainer.tensors().items())
    with refused(server, ErrorCode.ROUND_OVER):
        a.upload(1)
    b.join()
    assert a.await_assignment(after=a.assignment.round).round == pb.RoundReference(round_index=0, attempt=1)
    assert server.spooled_bytes == 0 and server.spooled_files == []
    a.upload(0)


def test_uploads_that_wait_when_an_attempt_is_abandoned_are_freed(serve: Serve) -> None:
    server = serve(trains=False, clients=2, min_updates=2)
    a, b = assigned(server, "a", "b")
    a.upload(0)
    b.upload(0)
    assert server.spooled_bytes > 0
    b.stub.Leave(pb.LeaveRequest(session=b.session))
    server.start_training()
    eventually(lambda: server.spooled_bytes == 0, what="the spool to be empty")
    assert server.sample("uploads_total", outcome="trained") == 0


def test_a_stalled_stream_gives_its_room_back_when_its_round_is_over(serve: Serve) -> None:
    server = serve(clients=2, min_updates=2)
    a, b = assigned(server, "a", "b")
    stream = OpenStream(a, timeout=None).send(*a.upload_parts(0)[:2])
    try:
        eventually(lambda: server.spooled_bytes > 0, what="the stream to be admitted")
        b.stub.Leave(pb.LeaveRequest(session=b.session))
        eventually(lambda: server.sample("rounds_abandoned_total") == 1, what="the attempt to be abandoned")

        def freed_as_time_passes() -> bool:
            # The trainer's thread ends the attempt whenever it gets to it; a running server ticks all the time.
            server.advance(6.0)
            return server.spooled_bytes == 0

        eventually(freed_as_time_passes, deadline_seconds=10, what="the reservation to be freed")
    finally:
        stream.cancel()


def test_a_dead_trainer_ends_the_server_even_while_probes_wait(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(trains=False, preset="heron-server-loss", clients=2)
    a, _b = assigned(server, "a", "b")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("gone")

    monkeypatch.setattr(server.parts.worker._trainer, "judge", fail)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(a.upload, 0)
        server.start_training()
        assert server.parts.ended.wait(10)
        assert isinstance(server.parts.worker.failure, OSError)
        drain = threading.Thread(target=_drain, args=(server.config, server.parts, False), daemon=True)
        drain.start()
        drain.join(5.0)
        hung = drain.is_alive()
        server.parts.owner.drain()
        drain.join(10.0)
        assert waiting.exception(timeout=20) is not None
    assert not hung


def test_a_start_that_failed_can_be_tried_again_in_the_same_directory(tmp_path: Path, program_cache_dir: Path) -> None:
    places: dict[str, Any] = {"run_dir": tmp_path / "run", "program_cache": program_cache_dir}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="cannot listen"):
            RunningServer(tiny_config(listen=f"127.0.0.1:{taken.getsockname()[1]}", **places))
    RunningServer(tiny_config(**places)).stop()


def test_a_radius_that_was_refused_can_be_corrected_in_the_same_directory(tmp_path: Path, program_cache_dir: Path) -> None:
    places: dict[str, Any] = {"run_dir": tmp_path / "run", "program_cache": program_cache_dir}
    with pytest.raises(ParityError, match="smoothing_radius"):
        RunningServer(tiny_config(smoothing_radius=1.0, **places))
    RunningServer(tiny_config(**places)).stop()


def test_a_resumed_server_goes_on_inside_the_round_that_was_open(tmp_path: Path, program_cache_dir: Path) -> None:
    places: dict[str, Any] = {"run_dir": tmp_path / "run", "program_cache": program_cache_dir}
    first = RunningServer(tiny_config(**places))
    with WireClient(first.target) as client:
        run_id = client.join().run_id
        client.run_round()
        opened = client.await_assignment(after=client.assignment.round)
        client.upload(0)
        weights = client.blob(opened.client_model.sha256)
    first.stop()
    second = RunningServer(tiny_config(**places, resume=True))
    try:
        with WireClient(second.target) as client:
            assert client.join().run_id == run_id
            again = client.await_assignment()
            assert again.round == opened.round == pb.RoundReference(round_index=1, attempt=0)
            assert client.blob(again.client_model.sha256) == weights
            assert second.state.registry.by_name["a"].rounds_completed == 1
            client.upload(0)
            assert second.sample("uploads_total", outcome="repeated") == 1
            assert second.sample("uploads_total", outcome="trained") == 1, "again, for the checkpoint is older"
    finally:
        second.stop()
