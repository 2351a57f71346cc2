"""Uploads that come twice, too early, too late or while there is no room; and probes, which wait for their answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from heron_common.error_catalog import RETRY_PUSHBACK_METADATA, ErrorCode
from heron_server.rounds.admission import UploadHeader
from heron_server.training.uploads import DecodedUpload
from tests.harness.polling import eventually
from tests.server.running_server import RunningServer
from tests.server.wire_client import OpenStream, assigned, metadata_of, refused

Serve = Callable[..., RunningServer]


def trained(server: RunningServer) -> float:
    return server.sample("uploads_total", outcome="trained")


def test_a_repeated_upload_is_acknowledged_and_trained_once(serve: Serve) -> None:
    server = serve()
    (client,) = assigned(server, "a")
    for _ in range(3):
        client.upload(0)
    client.upload(1)
    eventually(lambda: trained(server) == 2, what="both steps to be trained")
    client.upload(0)
    client.upload(1)
    assert trained(server) == 2 and server.parts.worker._trainer.server_version == 2
    assert server.sample("uploads_total", outcome="repeated") == 4
    assert len(server.spooled_files) == 2, "a repeat leaves nothing, a payload stays until a checkpoint covers it"


def test_each_trained_upload_has_its_loss_reported_once_in_order(serve: Serve) -> None:
    server = serve()
    (client,) = assigned(server, "a")
    client.upload(0)
    client.upload(1)
    losses = eventually(lambda: list(client.ask().losses) if len(client.ask().losses) == 2 else None, what="both losses")
    assert [(loss.local_step, loss.server_version) for loss in losses] == [(0, 0), (1, 1)]
    assert all(np.isfinite(loss.server_loss) for loss in losses)
    assert [loss.local_step for loss in client.ask(losses_seen=1).losses] == [1]
    assert list(client.ask(losses_seen=2).losses) == []


def test_the_same_upload_with_other_bytes_excludes_its_client_from_the_attempt(serve: Serve) -> None:
    server = serve(clients=3, min_updates=2)
    a, b, _c = assigned(server, "a", "b", "c")
    a.upload(0, seed=0)
    eventually(lambda: server.untrained == 0, what="the trainer to be idle")
    with refused(server, ErrorCode.CONFLICTING_UPLOAD):
        a.upload(0, seed=1)
    with refused(server, ErrorCode.NOT_IN_COHORT):
        a.upload(1)
    with refused(server, ErrorCode.NOT_IN_COHORT):
        a.upload(0, seed=0)
    assert a.ask().HasField("wait"), "it waits for the next round"
    with refused(server, ErrorCode.ROUND_OVER):
        a.ask(training=a.assignment.round)
    assert server.sample("dropped_clients_total", reason="sent_other_bytes_for_the_same_upload") == 1
    b.upload(0)


def test_a_second_stream_while_one_is_open_is_busy_and_harms_nobody(serve: Serve) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    parts = client.upload_parts(0)
    first = OpenStream(client).send(parts[0])
    record = server.state.registry.by_name["a"]
    eventually(lambda: record.stream, what="the first stream to be admitted")
    with refused(server, ErrorCode.STREAM_BUSY) as caught:
        client.upload(1)
    assert int(metadata_of(caught.value)[RETRY_PUSHBACK_METADATA]) > 0
    with refused(server, ErrorCode.STREAM_BUSY):
        client.upload(0)
    first.send(*parts[1:]).finish()
    client.upload(1)


def test_the_stream_of_a_replaced_session_ends_and_does_not_free_the_new_ones_place(serve: Serve) -> None:
    server = serve(trains=False)
    (old,) = assigned(server, "a")
    old_parts = old.upload_parts(0)
    stream = OpenStream(old).send(old_parts[0])
    record = server.state.registry.by_name["a"]
    eventually(lambda: record.stream, what="the old stream to be admitted")
    (new,) = assigned(server, "a")
    new_parts = new.upload_parts(0)
    current = OpenStream(new).send(new_parts[0])
    eventually(lambda: record.stream, what="the new stream to be admitted")
    with pytest.raises(Exception, match="session is over"):
        stream.send(*old_parts[1:]).finish()
    assert record.stream is not None
    with refused(server, ErrorCode.STREAM_BUSY):
        new.upload(1)
    current.send(*new_parts[1:]).finish()


def test_a_full_spool_asks_to_come_back(serve: Serve) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    with server.parts.spool.open(server.config.storage.spool_bytes):
        with refused(server, ErrorCode.SPOOL_FULL) as caught:
            client.upload(0)
        assert int(metadata_of(caught.value)[RETRY_PUSHBACK_METADATA]) > 0
    client.upload(0)


def test_every_retryable_refusal_says_when_to_come_back_in_both_ways(serve: Serve) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    with server.parts.spool.open(server.config.storage.spool_bytes), refused(server, ErrorCode.SPOOL_FULL) as named:
        client.upload(0)
    # A stream that ends early names no time of its own.
    with refused(server, ErrorCode.TRUNCATED) as unnamed:
        client.send_upload(client.upload_parts(0)[:-1])
    for caught in (named, unnamed):
        status = Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
        assert (status.code, status.message) == (caught.value.code().value[0], caught.value.details())
        delay = RetryInfo()
        assert status.details[0].Unpack(delay)
        pushback = int(metadata_of(caught.value)[RETRY_PUSHBACK_METADATA])
        assert delay.retry_delay.ToMilliseconds() == pushback > 0


def test_a_refusal_for_good_names_no_time(serve: Serve) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    with refused(server, ErrorCode.UNEXPECTED_UPLOAD) as caught:
        client.upload(99)
    assert not {RETRY_PUSHBACK_METADATA, "grpc-status-details-bin"} & set(metadata_of(caught.value))


def test_a_full_spool_still_admits_the_upload_that_training_waits_for(serve: Serve) -> None:
    server = serve(trains=False, clients=2, server_schedule="lockstep")
    a, b = assigned(server, "a", "b")
    with server.parts.spool.open(server.config.storage.spool_bytes):
        with refused(server, ErrorCode.SPOOL_FULL):
            b.upload(0)
        a.upload(0)


def test_an_upload_larger_than_the_whole_spool_is_not_told_to_come_back_for_ever(serve: Serve) -> None:
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    server.parts.spool.budget_bytes = 10
    assert server.spooled_bytes == 0, "waiting changes nothing"
    try:
        client.upload(0)
    except grpc.RpcError as exc:
        assert RETRY_PUSHBACK_METADATA not in metadata_of(exc), exc


def test_under_lockstep_a_fast_client_waits_for_the_slow_one(serve: Serve) -> None:
    server = serve(clients=2, server_schedule="lockstep", local_steps=5)
    fast, slow = assigned(server, "fast", "slow")
    for step in range(3):
        fast.upload(step)
    eventually(lambda: trained(server) == 1, what="the one that nobody precedes")
    with refused(server, ErrorCode.TOO_FAR_AHEAD) as caught:
        fast.upload(3)
    assert int(metadata_of(caught.value)[RETRY_PUSHBACK_METADATA]) > 0
    slow.upload(0)
    eventually(lambda: trained(server) == 3, what="both clients' step 0 and the fast one's step 1")
    fast.upload(3)


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_probes_are_judged_by_the_version_before_the_step_and_the_answer_is_kept(serve: Serve, difference: str) -> None:
    server = serve(preset="heron-server-loss", difference=difference)
    (client,) = assigned(server, "a")
    trainer = server.parts.worker._trainer
    z, y = client.batch(seed=3)
    probes = 1 if difference == "forward" else 2
    assert len(z) == len(y) * (1 + probes)
    expected = trainer.judge(DecodedUpload(z, y)).reshape(-1)
    first = client.upload(0, seed=3)
    np.testing.assert_array_equal(np.array(first.probe_losses, np.float32), expected)
    assert first.server_version == 0 and trainer.server_version == 1
    again = client.upload(0, seed=3)
    assert again.probe_losses == first.probe_losses and again.server_version == first.server_version
    assert trainer.server_version == 1
    later = client.upload(1, seed=3)
    assert later.server_version == 1 and later.probe_losses != first.probe_losses


def test_probes_without_an_upload_step_are_judged_but_not_trained_on(serve: Serve) -> None:
    server = serve(preset="heron-server-loss", upload_interval=2)
    (client,) = assigned(server, "a")
    client.upload(0)
    answer = client.upload(1)
    assert answer.probe_losses and server.parts.worker._trainer.server_version == 1


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda server: server.parts.owner.drain(), ErrorCode.DRAINING),
        (lambda server: server.advance(server.config.rounds.liveness_seconds + 1), ErrorCode.ROUND_OVER),
    ],
)
def test_a_probe_that_waits_is_let_go_when_its_round_ends(serve: Serve, end: Callable[[RunningServer], None], code: ErrorCode) -> None:
    server = serve(trains=False, preset="heron-server-loss")
    (client,) = assigned(server, "a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.upload, 0)
        eventually(lambda: server.sample("uploads_total", outcome="accepted") == 1, what="the upload to be accepted")
        end(server)
        error = waiting.exception(timeout=20)
    assert error is not None and metadata_of(error)["heron-error-code"] == code.value  # type: ignore[arg-type]


def test_accepting_an_upload_twice_from_two_streams_keeps_one(serve: Serve) -> None:
    """A client's new process may send what its old one is still sending."""
    server = serve(trains=False)
    (client,) = assigned(server, "a")
    receiver, attempt = server.parts.receiver, server.state.attempt
    assert attempt is not None
    payload = b"".join(m.chunk.data for m in client.upload_parts(0)[1:3])
    header = UploadHeader(
        session=client.session,
        speaker="",
        run_id=client.run_id,
        round=attempt.assignment.round,
        tensors=attempt.upload_specs,
        total_bytes=len(payload),
        purpose=attempt.purpose,
    )
    streams = []
    for _ in range(2):
        streams.append(receiver.open_upload(header))
        server.parts.owner.release(streams[-1].admitted.stream)
    for incoming in streams:
        with incoming:
            incoming.take("activations", payload)
            receiver.accept_upload(incoming, "digest")
    assert server.spooled_bytes == len(payload) and len(server.spooled_files) == 1


def test_an_upload_for_a_round_that_ended_meanwhile_is_not_accepted(serve: Serve) -> None:
    server = serve(trains=False, clients=2, min_updates=1)
    a, _b = assigned(server, "a", "b")
    parts = a.upload_parts(0)
    stream = OpenStream(a).send(*parts[:2])
    eventually(lambda: server.spooled_bytes > 0, what="the stream to be admitted")
    server.advance(server.config.rounds.round_deadline_seconds)
    with pytest.raises(Exception, match="is not open on this server"):
        stream.send(*parts[2:]).finish()
    assert server.spooled_bytes == 0 and server.spooled_files == []
    assert a.ask().HasField("wait")
