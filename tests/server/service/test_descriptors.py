"""Near the limit of open files the operator hears it, in few lines."""

from __future__ import annotations

import logging
import os
import resource

import pytest

from heron_common.process.clock import ManualClock
from heron_server.service.descriptors import DescriptorWatch, open_descriptors


def test_open_descriptors_are_counted() -> None:
    before = open_descriptors()
    assert before is not None
    own = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    try:
        assert open_descriptors() == before + 5
    finally:
        for descriptor in own:
            os.close(descriptor)


def test_a_process_that_has_none_left_counts_as_at_its_limit() -> None:
    before, own = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        try:
            while True:
                own.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            found = open_descriptors()
    finally:
        for descriptor in own:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found == 256


def test_from_eight_tenths_on_it_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock, count = ManualClock(), 799
    watch = DescriptorWatch(clock, lambda: count, lambda: 1000)
    said = []
    with caplog.at_level(logging.WARNING):
        for _ in range(150):
            watch.look()
            said.append(len(caplog.records))
            count = 800
            clock.advance(1.0)
    assert (said[0], said[1], said[60], said[61], said[149]) == (0, 1, 1, 2, 3)
    record = caplog.records[0].__dict__
    assert (record["open"], record["limit"]) == (800, 1000)
    assert caplog.records[1].__dict__["times"] == 60


def test_without_a_limit_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        DescriptorWatch(ManualClock(), lambda: 10**6, lambda: 0).look()
        DescriptorWatch(ManualClock(), lambda: None, lambda: 100).look()
    assert not caplog.records
