"""A stream on which nothing moves is given up, once; one that waits for this device is not."""

from __future__ import annotations

import threading

import pytest

from heron_client.network.stall import StallWatch
from heron_common.errors import TransportError
from heron_common.process.clock import MonotonicClock
from tests.harness.polling import eventually


def test_a_stalled_stream_is_cancelled_and_the_next_may_take_twice_as_long() -> None:
    watch, cancelled = StallWatch(MonotonicClock(), 0.05), threading.Event()
    with pytest.raises(TransportError, match="nothing moved"), watch.watching(cancelled.set):
        assert cancelled.wait(30)
        raise RuntimeError("what gRPC says of a cancelled call")
    assert watch.stall_seconds == 0.1
    watch.close()


def test_a_stream_that_waits_for_this_device_is_left_alone_beside_one_that_stalls() -> None:
    watch, patient, late = StallWatch(MonotonicClock(), 0.02), threading.Event(), threading.Event()
    with watch.watching(patient.set) as computing, watch.watching(late.set) as stuck:
        computing.pause()
        eventually(late.is_set, what="the end of the stalled stream")
        assert stuck.stalled and not computing.stalled and not patient.is_set()
        computing.note()
        eventually(patient.is_set, what="the end of the other one, once the network was to move")
    watch.close()


def test_other_failures_pass_as_they_are() -> None:
    watch = StallWatch(MonotonicClock(), 60.0)
    with pytest.raises(KeyError), watch.watching(lambda: None):
        raise KeyError("x")
    watch.close()
