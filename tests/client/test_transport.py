"""The client's gRPC edge: losses arrive once whatever overtakes what, calls end when this process is asked to stop."""

from __future__ import annotations

import threading

import pytest

from heron_client.transport import Transport
from heron_common.assignment import UploadLoss
from heron_common.errors import TransportError
from heron_common.ids import RoundReference
from tests.harness.cluster import free_port


def _losses(first: int, count: int) -> tuple[UploadLoss, ...]:
    return tuple(UploadLoss(RoundReference(0, 0), step, float(step), step) for step in range(first, first + count))


def _transport(target: str) -> Transport:
    return Transport(target, lambda *_: None, lambda _: None)


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
    with pytest.raises(TransportError, match=r"does not answer: unavailable \(Connection refused\)"):
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
