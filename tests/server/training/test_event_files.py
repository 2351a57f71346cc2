"""TensorBoard's event files: read back without the library that wrote them, superseded after a restart, harmless where the disk refuses."""

from __future__ import annotations

import dataclasses
import logging
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from heron_common.errors import ConfigurationError
from heron_common.ids import RoundReference
from heron_server.storage.run_directory import has_begun
from heron_server.summary import RoundRecord, skipped_round
from heron_server.training.event_files import TAGS, EventFiles
from tests.harness.simulated import run_simulation


def crc32c(data: bytes) -> int:
    """Return the CRC of RFC 3720, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    value = crc32c(data)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> list[bytes]:
    """Return the records of a TFRecord file whose sums are right."""
    data, found, place = path.read_bytes(), [], 0
    while place < len(data):
        length, length_sum = struct.unpack_from("<QI", data, place)
        assert length_sum == masked(data[place : place + 8])
        body = data[place + 12 : place + 12 + length]
        assert struct.unpack_from("<I", data, place + 12 + length) == (masked(body),)
        found.append(body)
        place += 16 + length
    return found


def fields(message: bytes) -> list[tuple[int, Any]]:
    """Return number and value of every field of a protobuf message."""
    found: list[tuple[int, Any]] = []
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        value: Any
        if kind == 0:
            value = varint()
        else:
            size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
            value, place = message[place : place + size], place + size
        found.append((number, value))
    return found


def scalars(path: Path) -> dict[int, dict[str, float]]:
    """Return tag and value by step: Event.step is field 2, .summary 5; Summary.value 1; Value.tag 1, .simple_value 2."""
    by_step: dict[int, dict[str, float]] = {}
    for record in records(path):
        event = dict(fields(record))
        for _, value in fields(event[5]) if 5 in event else []:
            entry = dict(fields(value))
            by_step.setdefault(event[2], {})[entry[1].decode()] = struct.unpack("<f", entry[2])[0]
    return by_step


def sessions(path: Path) -> list[int]:
    """Return the steps from which a file supersedes others (Event.session_log is field 7)."""
    return [event[2] for event in (dict(fields(record)) for record in records(path)) if 7 in event]


def record(round_index: int, **figures: Any) -> RoundRecord:
    return dataclasses.replace(skipped_round(RoundReference(round_index, 0), 2), **figures)


def test_the_check_sum_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_a_runs_scalars_are_those_of_its_summary(tmp_path: Path) -> None:
    run = run_simulation(tmp_path / "run", preset="frozen", rounds=2, local_steps=1, tensorboard_dir=tmp_path / "curves")
    (path,) = (tmp_path / "curves").iterdir()
    expected = {
        row["round_index"] + 1: {tag: pytest.approx(row[field], rel=1e-6) for tag, field in TAGS.items() if row[field] is not None}
        for row in run.summary["rounds"]
    }
    assert scalars(path) == expected
    assert {"accuracy/test", "loss/server"} <= set(expected[2])
    assert sessions(path) == [1]
    assert has_begun(tmp_path / "run") and not has_begun(tmp_path)


def test_a_process_that_goes_on_supersedes_what_it_repeats(tmp_path: Path) -> None:
    for first in (0, 1):
        files = EventFiles(tmp_path)
        for index in range(first, 3):
            files.write(record(index, updates=first + 1))
        files.close()
        files.close()
    before, after = sorted(tmp_path.iterdir(), key=lambda path: min(sessions(path)))
    assert (sessions(before), sessions(after)) == ([1], [2])
    assert list(scalars(before)) == [1, 2, 3] and list(scalars(after)) == [2, 3]


def test_a_disk_that_refuses_costs_the_curves_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = EventFiles(tmp_path / "curves")
    (tmp_path / "curves").rmdir()
    with caplog.at_level(logging.ERROR):
        files.write(record(0))
        files.write(record(1))
    files.close()
    assert [entry.message for entry in caplog.records] == ["the event files of --tensorboard-dir end here: the disk refuses"]


def test_without_the_library_the_option_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigurationError, match=r"--tensorboard-dir needs.*pip install 'heron-sfl\[tensorboard\]'"):
        EventFiles(tmp_path)
