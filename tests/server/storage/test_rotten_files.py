"""Bytes of a run directory rot while the server is down: it says so in a sentence, or takes the upload or the round again; its trainer does not die twice."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heron_common.errors import HeronError, StorageError
from heron_server.models.split_model import SplitModel
from heron_server.storage.ledger import Ledger
from heron_server.storage.spool import Spool
from tests.harness.polling import eventually
from tests.server.rounds.interrupted import take_part
from tests.server.rounds.killed_run import Run, begin_round, undisturbed, unlike, upload_steps
from tests.server.training.test_update_log_replay import SEED, LoggingClient, digest_of
from tests.server.wire_client import joined

Start = Callable[..., Run]


def flip(path: Path, offset: int, bit: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= bit
    path.write_bytes(bytes(data))


def test_every_byte_of_a_payload_counts(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    data = bytes(range(64))
    with spool.open(64) as writer:
        writer.write(data)
        stored = dataclasses.replace(writer.commit(), sha256=hashlib.sha256(data).hexdigest()).to_stored()
    assert stored.name is not None
    for offset in range(64):
        flip(tmp_path / stored.name, offset, 1 << (offset % 8))
        with pytest.raises(StorageError, match="is not what was acknowledged: its digest is"):
            spool.recover(stored.name, 64, sha256=stored.sha256)
        flip(tmp_path / stored.name, offset, 1 << (offset % 8))
    assert spool.recover(stored.name, 64, sha256=stored.sha256).read() == data
    assert spool.recover(stored.name, 64).read() == data, "an earlier version recorded no digest of some"


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


def rot(*numbers: int) -> Callable[[Path], None]:
    """Flip a byte in the middle of these files of the spool, counted from the newest."""

    def between(path: Path) -> None:
        files = sorted((path / "spool").glob("*.upload"))
        for number in numbers:
            flip(files[number], files[number].stat().st_size // 2)

    return between


def assert_said(caplog: pytest.LogCaptureFixture) -> None:
    reasons = [
        getattr(record, "reason", "") for record in caplog.records if "cannot be gone on with and is repeated" in record.getMessage()
    ]
    assert len(reasons) == 1 and "is not what was acknowledged: its digest is" in reasons[0]


def test_a_rotten_upload_repeats_its_round(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    expected = undisturbed(start, 1)
    run = start(trains=False)
    begin_round(joined(run.server, "a", "b"), 0, 2)
    run.kill(rot(0))
    assert_said(caplog)
    take_part(run.server, joined(run.server, "a", "b"), 0)
    assert [record.attempt for record in run.server.parts.worker.rounds] == [1]
    assert unlike(run.tensors(), expected) == [] and run.server.parts.worker.failure is None


def test_rotten_gradients_repeat_their_round(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    run = start(preset="sflv2", server_schedule="sequential")
    clients = joined(run.server, "a", "b")
    for client in clients:
        client.await_assignment()
    upload_steps(clients[:1], 0, range(1))
    assert len(run.server.spooled_files) == 2, "the upload and what answered it"
    run.kill(rot(-1))
    assert_said(caplog)
    assert run.server.parts.worker.failure is None and run.server.spooled_files == []


def test_rotten_weights_that_a_log_arrived_at_repeat_their_round(
    start: Start, tiny_model: SplitModel, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(preset="heron", update_encoding="log", seed=SEED, local_steps=2)
    clients = [LoggingClient(run.server.target, tiny_model, name) for name in "ab"]
    for client in clients:
        client.join()
    for step in range(2):
        for client in clients:
            client.await_assignment()
            client.upload(step)
    log = clients[0].coefficients()
    clients[0].submit_log(log, digest_of(clients[0].arrival(log)))
    run.kill(rot(-1))
    assert_said(caplog)
    assert run.server.parts.worker.failure is None and run.server.spooled_files == []


# ---- any file ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def left_behind(start: Start, tmp_path: Path) -> Iterator[Run]:
    """A run that was killed inside its second round, with checkpoints, a ledger, payloads and a checkpoint inside the round."""
    run = start(rounds=3)
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 0)
    begin_round(clients, 1, 2)
    run.trained(4)
    run.server.parts.ledger.sync()
    run.stop()
    yield run


def resumed_twice(run: Run, directory: Path, options: dict[str, object]) -> str:
    """Start from a directory, and again from what that leaves; returns the sentence if it is refused."""
    for _ in range(2):
        try:
            other = Run.__new__(Run)
            other._options, other._directory, other._servers = dict(options), directory, []
            server = other.start(resume=True)
        except HeronError as exc:
            assert str(exc) and "\n" not in str(exc)
            return str(exc)
        try:
            eventually(lambda: server.untrained == 0, what="training")  # noqa: B023
            assert server.parts.worker.failure is None
        finally:
            server.stop()
        assert server.parts.worker.failure is None
    return ""


def any_rotten_byte(run: Run, tmp_path: Path, per_file: int, seed: int) -> None:
    draw = random.Random(seed)
    files = [path.relative_to(run.path) for path in sorted(run.path.rglob("*")) if path.is_file() and path.stat().st_size]
    assert {path.parts[0] for path in files} >= {"checkpoints", "spool", "ledger.sqlite", "run.json", "summary.json"}
    for name in files:
        for _ in range(per_file):
            directory = tmp_path / "rotten"
            shutil.copytree(run.path, directory)
            offset, bit = draw.randrange((directory / name).stat().st_size), 1 << draw.randrange(8)
            flip(directory / name, offset, bit)
            try:
                resumed_twice(run, directory, run._options)
            except BaseException as exc:
                raise AssertionError(f"{name} at {offset}, bit {bit}") from exc
            shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_any_byte_of_any_file_may_rot(left_behind: Run, tmp_path: Path, seed: int) -> None:
    any_rotten_byte(left_behind, tmp_path, 8, seed)


def test_a_rotten_ledger_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path, "run", begins=True, durable=False).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    size = path.stat().st_size
    page = 4096
    # The header of the second page: the root of the first table.
    flip(path, page, 0xFF)
    assert size > page
    with pytest.raises(StorageError, match=r"damaged|malformed"):
        Ledger(path, "run", begins=False)


def test_a_manifest_that_names_another_round_is_damage(start: Start) -> None:
    run = start()
    clients = joined(run.server, "a", "b")
    take_part(run.server, clients, 0)
    manifest = run.path / "checkpoints" / "manifest.json"
    before = manifest.read_text()
    changed = before.replace('"completed_rounds": 1', '"completed_rounds": 9')
    assert changed != before
    server = run.kill(lambda path: rewrite(path / "checkpoints" / "manifest.json", changed))
    assert len(server.parts.worker.rounds) == 0, "the one before is used"
