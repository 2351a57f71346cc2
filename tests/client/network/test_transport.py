"""The client's gRPC edge: losses arrive once whatever overtakes what, calls end when this process is asked to stop."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from heron_client.network.downloads import FileDownload, MemoryDownload
from heron_client.network.transport import Transport
from heron_common.errors import ProgramError, TransportError
from heron_common.ids import RoundReference
from heron_common.protocol.messages import UploadLoss
from heron_common.specification.model_spec import BlobReference
from heron_proto.v1 import split_training_pb2 as pb
from tests.harness.cluster import free_port

pytestmark = pytest.mark.process


def _losses(first: int, count: int) -> tuple[UploadLoss, ...]:
    return tuple(
        UploadLoss(RoundReference(0, 0), step, server_loss=float(step), server_version=step) for step in range(first, first + count)
    )


def _transport(target: str) -> Transport:
    return Transport(target, count_bytes=lambda *_: None, count_refusal=lambda _: None)


def test_losses_that_two_answers_bring_are_taken_once() -> None:
    transport = _transport("127.0.0.1:1")
    # A heartbeat and an upload both asked after 0 losses; the upload's answer, which came later, brings two more.
    assert transport._new_losses(0, _losses(0, 3)) == _losses(0, 3)
    assert transport._new_losses(0, _losses(0, 5)) == _losses(3, 2)
    # An answer that was overtaken brings nothing new.
    assert transport._new_losses(0, _losses(0, 4)) == ()
    assert transport._new_losses(5, _losses(5, 1)) == _losses(5, 1)
    transport.close()


def test_an_unreachable_server_is_a_transport_error_in_one_sentence() -> None:
    transport = _transport(f"127.0.0.1:{free_port()}")
    with pytest.raises(TransportError, match=r"does not answer: unavailable \(Connection refused( \(111\))?\)"):
        transport.join("a", "k" * 32, 1)
    transport.close()


def test_a_call_that_waits_on_a_silent_server_ends_when_it_is_cancelled() -> None:
    import socket

    # A listener that accepts and never speaks: the call would wait for its whole deadline.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = _transport(f"127.0.0.1:{silent.getsockname()[1]}")
        outcome: list[BaseException] = []

        def call() -> None:
            try:
                transport.join("a", "k" * 32, 1)
            except TransportError as exc:
                outcome.append(exc)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        transport.cancel()
        thread.join(10)
        assert not thread.is_alive()
        assert len(outcome) == 1
        with pytest.raises(TransportError):
            transport.next_step(None)
        transport.close()


class LostConnection(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "lost"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class BlobStub:
    """Serves a blob in pieces of 10 bytes, and loses the connection after some of them."""

    def __init__(self, content: bytes, *pieces_until_loss: int) -> None:
        self.content = content
        self.losses = list(pieces_until_loss)
        self.offsets: list[int] = []

    def FetchBlob(self, request: pb.FetchBlobRequest, timeout: float) -> Any:
        assert timeout > 0
        self.offsets.append(request.offset_bytes)
        return BlobCall(self.content[request.offset_bytes :], self.losses.pop(0) if self.losses else None)


class BlobCall:
    def __init__(self, rest: bytes, pieces: int | None) -> None:
        self.rest, self.pieces = rest, pieces

    def __iter__(self) -> Iterator[pb.FetchBlobResponse]:
        for place, start in enumerate(range(0, len(self.rest), 10)):
            if place == self.pieces:
                raise LostConnection
            yield pb.FetchBlobResponse(data=self.rest[start : start + 10])

    def cancel(self) -> None:
        pass


CONTENT = bytes(range(95))
BLOB = BlobReference(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def _fetching(stub: BlobStub) -> tuple[Transport, list[int]]:
    counted: list[int] = []
    return Transport(
        "nowhere", count_bytes=lambda _d, _k, size: counted.append(size), count_refusal=lambda _: None, connect=lambda: (stub, lambda: None)
    ), counted


def test_a_file_whose_fetch_was_interrupted_goes_on_where_it_ended(tmp_path: Path) -> None:
    stub = BlobStub(CONTENT, 3, 0, 2)
    transport, counted = _fetching(stub)
    for _ in range(3):
        # A process of its own each time: what the one before fetched is in the file.
        with closing(FileDownload(BLOB, tmp_path / "blob")) as download, pytest.raises(TransportError):
            transport.fetch(download, "base")
        assert not (tmp_path / "blob").exists()
    with closing(FileDownload(BLOB, tmp_path / "blob")) as download:
        transport.fetch(download, "base")
    assert stub.offsets == [0, 30, 30, 50] and sum(counted) == len(CONTENT)
    assert (tmp_path / "blob").read_bytes() == CONTENT and [path.name for path in tmp_path.iterdir()] == ["blob"]


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"!", CONTENT + b"more than was announced", b"short"])
def test_a_file_that_is_not_what_its_digest_names_is_not_kept(wrong: bytes, tmp_path: Path) -> None:
    stub = BlobStub(wrong)
    transport, _ = _fetching(stub)
    with closing(FileDownload(BLOB, tmp_path / "blob")) as download, pytest.raises(ProgramError, match="it is refused"):
        transport.fetch(download, "base")
    assert list(tmp_path.iterdir()) == []
    stub.content = CONTENT
    with closing(FileDownload(BLOB, tmp_path / "blob")) as download:
        transport.fetch(download, "base")
    assert stub.offsets == [0, 0] and (tmp_path / "blob").read_bytes() == CONTENT


def test_memory_that_was_filled_in_part_is_filled_on_where_the_connection_broke() -> None:
    stub = BlobStub(CONTENT, 3, 0, 2)
    transport, counted = _fetching(stub)
    target = bytearray(len(CONTENT))
    download = MemoryDownload(BLOB, memoryview(target))
    for _ in range(3):
        with pytest.raises(TransportError):
            transport.fetch(download, "weights")
    transport.fetch(download, "weights")
    assert stub.offsets == [0, 30, 30, 50] and sum(counted) == len(CONTENT) and bytes(target) == CONTENT


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"!", CONTENT + b"more than was announced", b"short"])
def test_memory_that_is_not_what_its_digest_names_is_refused_and_begun_anew(wrong: bytes) -> None:
    stub = BlobStub(wrong)
    transport, _ = _fetching(stub)
    target = bytearray(len(CONTENT))
    download = MemoryDownload(BLOB, memoryview(target))
    with pytest.raises(ProgramError, match="it is refused"):
        transport.fetch(download, "weights")
    stub.content = CONTENT
    transport.fetch(download, "weights")
    assert stub.offsets == [0, 0] and bytes(target) == CONTENT
